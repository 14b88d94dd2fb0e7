r"""EleutherAI's lm-evaluation-harness with a datastore mixed in: the model `knnlm`.

    python -m knnlm_store_lm_eval run --model knnlm \
        --model_args pretrained=MODEL,store=faiss:stores/law --tasks lambada_openai

Importing this registers the model, so that `lm_eval.simple_evaluate(model="knnlm", ...)` knows it.
"""

from knnlm_store_lm_eval.model import KnnHFLM

__all__ = ["KnnHFLM"]
