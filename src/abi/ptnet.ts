/**
 * The two PCI devices of netmap passthrough, ptnet and ptnetmap-memdev: identifiers, BARs, registers and commands
 * (header net/netmap_virt.h; behaviour: docs/abi.md 2).
 */

export const PTNETMAP_PCI_VENDOR_ID = 0x1b36;
export const PTNETMAP_PCI_DEVICE_ID = 0x000c;
export const PTNETMAP_PCI_NETIF_ID = 0x000d;
/** Class codes, 24 bits: base, sub, interface. */
export const PTNETMAP_PCI_CLASS = 0xff0000;
export const PTNET_PCI_CLASS = 0x020000;

export const PTNETMAP_IO_PCI_BAR = 0;
export const PTNETMAP_MEM_PCI_BAR = 1;
export const PTNETMAP_MSIX_PCI_BAR = 2;

/** memdev BAR0, read only; byte offsets of 32-bit registers. */
export const PTNET_MDEV_IO = {
  MEMSIZE_LO: 0,
  MEMSIZE_HI: 4,
  MEMID: 8,
  IF_POOL_OFS: 64,
  IF_POOL_OBJNUM: 68,
  IF_POOL_OBJSZ: 72,
  RING_POOL_OFS: 76,
  RING_POOL_OBJNUM: 80,
  RING_POOL_OBJSZ: 84,
  BUF_POOL_OFS: 88,
  BUF_POOL_OBJNUM: 92,
  BUF_POOL_OBJSZ: 96,
  END: 100,
} as const;
/** Size of the memdev's BAR0 (I/O ports): a power of two that holds END. */
export const PTNETMAP_MDEV_IO_SIZE = 128;

/** ptnet BAR0; byte offsets of 32-bit registers. */
export const PTNET_IO = {
  PTFEAT: 0,
  PTCTL: 4,
  MAC_LO: 8,
  MAC_HI: 12,
  CSBBAH: 16,
  CSBBAL: 20,
  NIFP_OFS: 24,
  NUM_TX_RINGS: 28,
  NUM_RX_RINGS: 32,
  NUM_TX_SLOTS: 36,
  NUM_RX_SLOTS: 40,
  VNET_HDR_LEN: 44,
  HOSTMEMID: 48,
  CSB_GH_BAH: 52,
  CSB_GH_BAL: 56,
  CSB_HG_BAH: 60,
  CSB_HG_BAL: 64,
  END: 68,
  KICK_BASE: 128,
} as const;
/** Size of ptnet's BAR0 (I/O ports): KICK registers of 32 rings end it. */
export const PTNET_IO_SIZE = 256;
/** Rings that the KICK registers of BAR0 can serve. */
export const PTNET_MAX_RINGS = 32;

/** PTFEAT bits. */
export const PTNETMAP_F_VNET_HDR = 1;

/** PTCTL commands. */
export const PTNETMAP_PTCTL_CREATE = 1;
export const PTNETMAP_PTCTL_DELETE = 2;

/** Bytes of one CSB page; one for atok, one for ktoa, page aligned. */
export const CSB_PAGE_SIZE = 4096;

/** Legal VirtIO network header lengths. */
export const VNET_HDR_LENS = [0, 10, 12] as const;

/** BAR2: MSI-X table and pending bit array (byte offsets), 16 bytes per vector. */
export const PTNET_MSIX = { TABLE: 0, PBA: 2048, SIZE: 4096 } as const;

/** PCI configuration space, what the two devices use of it (PCI Local Bus Specification 3.0, 6.1 and 6.8.2). */
export const PCI = {
  VENDOR_ID: 0x00,
  DEVICE_ID: 0x02,
  COMMAND: 0x04,
  STATUS: 0x06,
  REVISION_ID: 0x08,
  CLASS: 0x09,
  HEADER_TYPE: 0x0e,
  BAR0: 0x10,
  SUBSYSTEM_VENDOR_ID: 0x2c,
  SUBSYSTEM_ID: 0x2e,
  CAPABILITY_LIST: 0x34,
  INTERRUPT_LINE: 0x3c,
  INTERRUPT_PIN: 0x3d,
  MSIX_CAP: 0x40,
  CONFIG_SIZE: 256,
  COMMAND_IO: 1,
  COMMAND_MEMORY: 2,
  COMMAND_MASTER: 4,
  /** COMMAND bits that stick when written. */
  COMMAND_MASK: 0x0507,
  STATUS_CAP_LIST: 0x10,
  CAP_ID_MSIX: 0x11,
  BAR_IO: 1,
  BAR_MEM_64: 4,
  BAR_MEM_PREFETCH: 8,
} as const;
