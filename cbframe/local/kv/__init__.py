"""The data service as clients and SDKs use it: connections, documents, sub-documents, statistics."""
