"""How byte-level vocabularies spell bytes (Radford et al. 2019)."""


def _byte_alphabet() -> dict[str, int]:
    """Printable bytes as themselves, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_LEVEL = _byte_alphabet()
"""The byte that each character of a byte-level token stands for."""
