"""Documents to measure on, and the catalogue of models."""

from forward_influence.data.cutting import Cut, Prepared, Skipped, cut, prepare
from forward_influence.data.document import Document, make_document
from forward_influence.data.documents import load_documents, sample_documents

__all__ = [
    "Cut",
    "Document",
    "Prepared",
    "Skipped",
    "cut",
    "load_documents",
    "make_document",
    "prepare",
    "sample_documents",
]
