/** Numbers of the pcap and pcapng formats (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng). */

export const LINKTYPE_ETHERNET = 1;

export const PCAP = {
  MAGIC_US: 0xa1b2c3d4,
  MAGIC_NS: 0xa1b23c4d,
  /** Bytes of the file's header and of a packet's. */
  HEADER: 24,
  RECORD: 16,
} as const;

export const PCAPNG = {
  /** Block types: section header, interface description, packet (old, simple, enhanced). */
  SHB: 0x0a0d0d0a,
  IDB: 1,
  OPB: 2,
  SPB: 3,
  EPB: 6,
  BYTE_ORDER: 0x1a2b3c4d,
  /** Options of blocks. */
  IF_NAME: 2,
  IF_TSRESOL: 9,
  IF_TSOFFSET: 14,
  EPB_FLAGS: 2,
} as const;
