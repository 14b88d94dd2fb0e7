"""kNN language models whose memory lives in the vector store you already run."""
