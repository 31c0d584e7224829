"""The descriptor pool that all generated modules of this package share, apart from protobuf's default one.

Protobuf's default pool knows every message by its full name and refuses a second definition. An application that has its own
copy of Flipt's or flagd's messages could then not import ours in the same process. In a pool of their own they meet nobody.
"""

from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()
"""Every message of the local interfaces, and the well-known types they use."""


def add_file(serialized: bytes) -> FileDescriptor:
    """Puts a serialized FileDescriptorProto into the pool; the files it imports must be there."""
    file = POOL.AddSerializedFile(serialized)
    assert isinstance(file, FileDescriptor)
    return file


def define(serialized: bytes, module: dict[str, object]) -> FileDescriptor:
    """Puts a file into the pool and its messages, enums and enum values into a generated module's names."""
    file = add_file(serialized)
    for name, enum in file.enum_types_by_name.items():
        module[name] = EnumTypeWrapper(enum)
        module.update((value.name, value.number) for value in enum.values)
    for name, message in file.message_types_by_name.items():
        message_class = GetMessageClass(message)
        message_class.__module__ = str(module["__name__"])
        module[name] = message_class
    return file


add_file(timestamp_pb2.DESCRIPTOR.serialized_pb)
add_file(struct_pb2.DESCRIPTOR.serialized_pb)
