"""The gRPC contract and the code made from it."""
