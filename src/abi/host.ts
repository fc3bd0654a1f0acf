/**
 * Host-private state of the datapath, as it lies in an arena outside every region (shared/design.md 4). Control code
 * fills these before the datapath sees them; afterwards the domain's datapath thread is their only writer, and
 * others only read counters. Addresses are byte offsets in the arena (unsigned 32 bits).
 *
 * Struct sizes are multiples of 64 (cache lines).
 */
import { struct } from './layout.ts';

/** Kinds of domain. */
export const DOMAIN_VALE = 1;

/** kring.state */
export const KRING_STOPPED = 0;
export const KRING_RUNNING = 1;

/**
 * One ring as the host sees it: netmap's netmap_kring. Names: hwcur/hwtail are private truth, rhead/rcur the last
 * checked copies of the application's head and cur.
 */
export const kring = struct('kring', 256, {
  /** Arena address of the netmap_ring (its slots are at + netmap_ring.size). */
  ring: [0, 'u32'],
  num_slots: [4, 'u32'],
  /** Arena address of buffer 0 of the region's buffer pool. */
  buf_base: [8, 'u32'],
  buf_size: [12, 'u32'],
  /** Buffers in the pool: valid indexes are NETMAP_FIRST_BUF .. num_bufs - 1. */
  num_bufs: [16, 'u32'],
  /** Arena addresses of this ring's CSB halves; meaningful while running. */
  atok: [20, 'u32'],
  ktoa: [24, 'u32'],
  /** Arena address of the port. */
  port: [28, 'u32'],
  /** NR_DIR_TX or NR_DIR_RX, as seen by the ring's user. */
  dir: [32, 'u32'],
  ring_id: [36, 'u32'],
  state: [40, 'u32'],
  hwcur: [44, 'u32'],
  hwtail: [48, 'u32'],
  rhead: [52, 'u32'],
  rcur: [56, 'u32'],
  /** 1 while the application's head is not valid (R7): such a ring does not keep its thread awake. */
  faulty: [60, 'u32'],
  /** 1 while the ring is on its domain's list of rings whose hwtail has to be published. */
  dirty: [64, 'u32'],
  /** 1 while the ring is on its domain's list of rings to be signalled. */
  signalled: [68, 'u32'],
  /** The application's invalid head, so that it is counted once (R7). */
  faulty_head: [72, 'u32'],
  faulty_cur: [76, 'u32'],
  /** What kern_need_kick of the CSB holds (the host never reads it back). */
  armed: [80, 'u32'],
  /** Counters: written by the datapath thread only. Packets, slots and bytes that left (tx) or arrived in (rx) the ring. */
  packets: [128, 'u64'],
  slots: [136, 'u64'],
  bytes: [144, 'u64'],
  /** tx: packets dropped for a bad slot (index, length, NS_INDIRECT, too many fragments, too short). */
  drop_bad: [152, 'u64'],
  /** tx: packets without a destination: own port, port gone. */
  drop_nodst: [160, 'u64'],
  /** rx: packets lost because the ring had no room. */
  drop_full: [168, 'u64'],
  /** rx: packets lost because the ring was stopped. */
  drop_stopped: [176, 'u64'],
  /** rx: packets lost because a slot of the receiver was bad, or its buffer smaller than the packet's slot. */
  drop_dst: [184, 'u64'],
  /** Times the ring's indexes had to be put right (R7). */
  repairs: [192, 'u64'],
  /** Interrupts asked for. */
  signals: [200, 'u64'],
});

/** One port of a switch. `tx_rings`, `rx_rings`: u32 arena addresses of its krings. */
export const port = struct('port', 256, {
  /** Arena address of the domain. */
  domain: [0, 'u32'],
  /** Index in the switch's table of ports. */
  port_id: [4, 'u32'],
  num_tx_rings: [8, 'u32'],
  num_rx_rings: [12, 'u32'],
  /** VirtIO network header of this port's frames: 0, 10 or 12 bytes. */
  vnet_hdr_len: [16, 'u32'],
  /** Last source address learned from this port (0 = none): 48 bits, first byte of the address lowest. */
  last_smac: [24, 'u64'],
  tx_rings: [64, 'bytes', 64],
  rx_rings: [128, 'bytes', 64],
});

/** An entry of a VALE switch's table of addresses. */
export const hash_ent = struct('hash_ent', 16, {
  mac: [0, 'u64'],
  port_id: [8, 'u32'],
});
