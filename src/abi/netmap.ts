/**
 * netmap's public structures and constants, NETMAP_API 14, x86-64 (headers net/netmap.h and net/netmap_virt.h).
 * Names and spelling are the headers'.
 */
import { struct } from './layout.ts';

export const NETMAP_API = 14;

/** netmap_if, at NIFP_OFS in the region. `ring_ofs` follows: i64 per ring (tx, host tx, rx, host rx), relative to it. */
export const netmap_if = struct('netmap_if', 56, {
  ni_name: [0, 'bytes', 16],
  ni_version: [16, 'u32'],
  ni_flags: [20, 'u32'],
  ni_tx_rings: [24, 'u32'],
  ni_rx_rings: [28, 'u32'],
  ni_bufs_head: [32, 'u32'],
  ni_host_tx_rings: [36, 'u32'],
  ni_host_rx_rings: [40, 'u32'],
  ni_spare1: [44, 'bytes', 12],
});

/** netmap_ring, aligned to 128 bytes; `slot[num_slots]` follows at its size. In CSB mode the host reads none of it. */
export const netmap_ring = struct('netmap_ring', 256, {
  buf_ofs: [0, 'i64'],
  num_slots: [8, 'u32'],
  nr_buf_size: [12, 'u32'],
  ringid: [16, 'u16'],
  dir: [18, 'u16'],
  head: [20, 'u32'],
  cur: [24, 'u32'],
  tail: [28, 'u32'],
  flags: [32, 'u32'],
  ts_sec: [40, 'i64'],
  ts_usec: [48, 'i64'],
  offset_mask: [56, 'u64'],
  buf_align: [64, 'u64'],
  sem: [128, 'bytes', 128],
});

export const netmap_slot = struct('netmap_slot', 16, {
  buf_idx: [0, 'u32'],
  len: [4, 'u16'],
  flags: [6, 'u16'],
  ptr: [8, 'u64'],
});

/** Application to kernel half of a ring's CSB: written by the application, read by the kernel (AW+ KR+). */
export const nm_csb_atok = struct('nm_csb_atok', 64, {
  head: [0, 'u32'],
  cur: [4, 'u32'],
  appl_need_kick: [8, 'u32'],
  sync_flags: [12, 'u32'],
});

/** Kernel to application half: written by the kernel, read by the application (AR+ KW+). */
export const nm_csb_ktoa = struct('nm_csb_ktoa', 64, {
  hwcur: [0, 'u32'],
  hwtail: [4, 'u32'],
  kern_need_kick: [8, 'u32'],
});

/** `netmap_ring.dir`: what kernels store (the comment in the public header says the opposite). */
export const NR_DIR_RX = 0;
export const NR_DIR_TX = 1;

/** Buffers 0 and 1 of every region are reserved by netmap's allocator. */
export const NETMAP_FIRST_BUF = 2;

/** Slot flags (net/netmap.h). */
export const NS_BUF_CHANGED = 0x0001;
export const NS_REPORT = 0x0002;
export const NS_FORWARD = 0x0004;
export const NS_NO_LEARN = 0x0008;
export const NS_INDIRECT = 0x0010;
export const NS_MOREFRAG = 0x0020;
export const NS_TXMON = 0x0040;
export const NS_PORT_SHIFT = 8;
export const NS_PORT_MASK = 0xff00;
/** Number of fragments of the packet a received slot belongs to. */
export const NS_RFRAGS_SHIFT = 8;
/** Most slots of one packet. */
export const NETMAP_MAX_FRAGS = 64;

/** nr_mode of NIOCREGIF: which rings. */
export const NR_REG_ALL_NIC = 1;
export const NR_REG_SW = 2;
export const NR_REG_NIC_SW = 3;
export const NR_REG_ONE_NIC = 4;
export const NR_REG_NULL = 7;
export const NR_REG_ONE_SW = 8;

/** nr_flags of NIOCREGIF. */
export const NR_MONITOR_TX = 0x100;
export const NR_MONITOR_RX = 0x200;
export const NR_ZCOPY_MON = 0x400;
export const NR_EXCLUSIVE = 0x800;
export const NR_RX_RINGS_ONLY = 0x2000;
export const NR_TX_RINGS_ONLY = 0x4000;
export const NR_ACCEPT_VNET_HDR = 0x8000;
export const NR_DO_RX_POLL = 0x10000;
export const NR_NO_TX_POLL = 0x20000;

/** Flags of a netmap_ring, written by its application. */
export const NR_TIMESTAMP = 0x0002;
export const NR_FORWARD = 0x0004;

/** Bytes of a port's name, NUL included; largest number of a ring. */
export const NETMAP_REQ_IFNAMSIZ = 64;
export const NETMAP_RING_MASK = 0x0fff;

/** sync_flags of nm_csb_atok. */
export const NAF_FORCE_READ = 1;
export const NAF_FORCE_RECLAIM = 2;

/** Limits of VALE (sys/dev/netmap/netmap_vale.c, netmap_bdg.h). */
export const NM_BDG_MAXRINGS = 16;
export const NM_BRIDGE_RINGSIZE = 1024;
export const NM_BRIDGE_MAXSLOTS = 4096;
export const NM_BDG_MAXPORTS = 254;
export const NM_BDG_HASH = 1024;
