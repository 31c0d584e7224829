"""The protobuf messages of the local interfaces, generated from the .proto files beside this one by `make proto`."""
