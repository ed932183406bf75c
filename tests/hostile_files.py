"""Damaged, lying and oversized image files, built from a few bytes."""

import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset

SYNTAX = b"1.2.840.10008.1.2"
Content = bytes | Callable[[Path], None]
VOLUME = np.random.default_rng(0).integers(0, 1000, (6, 7, 8)).astype(np.int16)  # x, y, z
COLOUR = np.random.default_rng(0).integers(1, 255, (64, 48, 4)).astype(np.uint8)


def nifti(array: np.ndarray = VOLUME, affine: np.ndarray | None = None) -> bytes:
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    return bytes(image.to_bytes())


def edited(data: bytes, *changes: tuple[int, str, float]) -> bytes:
    """Bytes with values written over some of them: offset, struct format, value."""
    buffer = bytearray(data)
    for offset, form, value in changes:
        struct.pack_into(form, buffer, offset, value)
    return bytes(buffer)


def spaced(value: float) -> bytes:
    """NIfTI without sform whose first spacing is odd."""
    return edited(nifti(), (254, "<h", 0), (80, "<f", value))


def mgh() -> bytes:
    return bytes(nib.MGHImage(VOLUME, np.eye(4)).to_bytes())


def picture(pixels: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = PIL.Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(stream, kind)
    return stream.getvalue()


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_bomb(side: int) -> bytes:
    """A grey PNG that announces gigabytes and holds its first rows."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(bytes(side + 1) * 20)))


def png_text_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(range(1, 6)) * 4)
    text = b"Comment\0\0" + zlib.compress(bytes(1 << 25), 1)
    return png_chunks((b"IHDR", header), (b"zTXt", text), (b"IDAT", rows))


def tiff_pages(count: int = 3) -> bytes:
    stream = io.BytesIO()
    pages = [PIL.Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 9) for _ in range(count)]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    return stream.getvalue()


def tiff_loop() -> bytes:
    """A TIFF whose only page says that it is followed by itself."""
    data = bytearray(tiff_pages(1))
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    return bytes(data)


def nrrd(lines: str, data: bytes = VOLUME.tobytes()) -> bytes:
    fixed = "NRRD0004\ntype: short\ndimension: 3\nendian: little\n"
    return f"{fixed}{lines}\n\n".encode() + data


NRRD = "sizes: 8 7 6\nspace: left-posterior-superior\nspace origin: (0,0,0)\n"
UPRIGHT = "space directions: (1,0,0) (0,1,0) (0,0,1)\n"


def mha(data: bytes = VOLUME.tobytes(), **changes: str) -> bytes:
    values = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "ElementSpacing": "1 1 1",
        "DimSize": "8 7 6",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    } | changes
    return "".join(f"{key} = {value}\n" for key, value in values.items()).encode() + data


def dicom(height: float = 0.0, pixels: np.ndarray = VOLUME[0], **tags: object) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = SYNTAX.decode() + ".1"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, object] = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": "1.2.3",
        "Modality": "CT",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PixelSpacing": [1, 1],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, height],
        "PixelData": pixels.tobytes(),
    } | tags
    for name, value in values.items():
        if value is not None:
            setattr(data, name, value)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def nested_dicom(depth: int) -> bytes:
    """DICOM with sequences within sequences."""
    undefined = b"\xff\xff\xff\xff"
    opened = b"\x08\x00\x15\x11SQ\0\0" + undefined + b"\xfe\xff\x00\xe0" + undefined
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    head, samples, tail = dicom().partition(b"\x28\x00\x02\x00US")
    return head + opened * depth + closed * depth + samples + tail


def folder_of(*files: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for index, data in enumerate(files):
            (path / f"{index}.dcm").write_bytes(data)

    return make


def saved(array: object, *, packed: bool = False) -> bytes:
    stream = io.BytesIO()
    if packed:
        np.savez_compressed(stream, a=np.asarray(array))
    else:
        np.save(stream, np.asarray(array), allow_pickle=True)
    return stream.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz_bomb(num_bytes: int) -> bytes:
    """A npz of a few megabytes that unpacks to gigabytes of zeros."""
    stream = io.BytesIO()
    head = npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({num_bytes},1,1)}}")
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.npy", "w", force_zip64=True) as member,
    ):
        member.write(head)
        for _ in range(num_bytes >> 24):
            member.write(bytes(1 << 24))
    return stream.getvalue()


def later(make: Callable[..., bytes], *arguments: int) -> Callable[[Path], None]:
    """Content that takes time to make, so it is made when the test runs."""
    return lambda path: path.write_bytes(make(*arguments)) and None


def npy(shape: str) -> bytes:
    return npy_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}")


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have about a hundred letters
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


def with_header_only(path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOLUME, np.eye(4)), path)
    path.with_suffix(".img").unlink()


def with_data_only(path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOLUME, np.eye(4)), path.with_suffix(".hdr"))
    path.with_suffix(".hdr").unlink()
