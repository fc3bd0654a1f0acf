/**
 * Host-private state of the datapath, as it lies in an arena outside every region (design, section 4). Control code
 * fills these before the datapath sees them; afterwards the domain's datapath thread is their only writer, and
 * others only read counters. Addresses are byte offsets in the arena (unsigned 32 bits).
 *
 * Struct sizes are multiples of 64 (cache lines), but for the entries of tables. Every struct starts out zeroed.
 */
import { struct } from './layout.ts';
import { NETMAP_MAX_FRAGS, NM_BDG_HASH, NM_BDG_MAXPORTS, NM_BDG_MAXRINGS } from './netmap.ts';

/** Kinds of domain. */
export const DOMAIN_VALE = 1;
/** Two ports, the ends of a pipe (docs/pipes.md). */
export const DOMAIN_PIPE = 2;
/** Ports that have nothing to do with each other: each takes what is sent, and always has something to receive. */
export const DOMAIN_NULL = 3;
/** A port of an interface of the host: its rings' frames come from and go to nic_queues (docs/nics.md). */
export const DOMAIN_NIC = 4;

/** Bytes of the frames that a null port gives. */
export const NULL_FRAME_LEN = 60;

/** Kinds of monitor (docs/monitors.md), beside those of domains: kring.kind of all its rings. */
export const MONITOR_COPY = 5;
export const MONITOR_ZCOPY = 6;
/** Most rings of one direction that the monitors of a domain have together. */
export const MAX_MONITOR_RINGS = 32;

/** kring.state */
export const KRING_STOPPED = 0;
export const KRING_RUNNING = 1;
/** Stopped ring of a pipe whose slots control code is writing: its peer leaves it alone. */
export const KRING_FROZEN = 2;

/**
 * One ring as the host sees it: netmap's netmap_kring. Names: hwcur/hwtail are private truth, rhead/rcur the last
 * checked copies of the application's head and cur, rtail and pub_hwcur what was last written to ktoa.
 *
 * Control code fills ring to ring_id and calls krReset; before each krStart it fills atok and ktoa. The rest is the
 * datapath's.
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
  /** 1 while the application's head or cur is not valid (R7): such a ring does not keep its thread awake. */
  faulty: [60, 'u32'],
  /** What ktoa's hwtail and hwcur hold (the host never reads them back). */
  rtail: [64, 'u32'],
  pub_hwcur: [68, 'u32'],
  /** What ktoa's kern_need_kick holds. */
  armed: [72, 'u32'],
  /** 1 while the ring is on its domain's list `dirty`. */
  dirty: [76, 'u32'],
  /** 1 while the ring is on its domain's list `signals`. */
  signalled: [80, 'u32'],
  /** Position in its domain's list `tx_running` or `rx_running`, while running. */
  run_idx: [84, 'u32'],
  /**
   * Pipes: arena address of the kring at the other end; its slots correspond one to one. Ports of interfaces: that of the
   * ring's nic_queue, 0 while there is none.
   */
  peer: [88, 'u32'],
  /** Pipes: arena address of u64[num_slots], both rings' private record of what was last exchanged at each slot. */
  shadow: [92, 'u32'],
  /** Pipes, tx: 1 while the packet that is not yet whole has a bad slot. */
  chain_bad: [96, 'u32'],
  /** Of a monitor's ring MONITOR_COPY or MONITOR_ZCOPY, of others the kind of their domain; 0 while not attached. */
  kind: [100, 'u16'],
  /** rx: up to where copy monitors have seen what arrived. */
  mon_tail: [102, 'u16'],
  /** The first of this ring's copy monitors (a list), and its zero-copy monitor, as krings; 0: none. Read as one u64. */
  mon: [104, 'u32'],
  zmon: [108, 'u32'],
  /** Of a monitor's ring: the tx and the rx ring it is a monitor of, 0 when they are gone; the next ones on their lists. */
  mon_of_tx: [112, 'u32'],
  mon_of_rx: [116, 'u32'],
  mon_next_tx: [120, 'u32'],
  mon_next_rx: [124, 'u32'],
  /** Counters (docs/datapath.md): packets, slots and bytes that left (tx) or arrived in (rx) the ring. */
  packets: [128, 'u64'],
  slots: [136, 'u64'],
  bytes: [144, 'u64'],
  /** tx: receivers these packets were meant for: 1 for a known address, all other ports for a flooded packet. */
  copies: [152, 'u64'],
  /** tx: packets dropped for a bad slot (index, length, NS_INDIRECT), too short, or of too many slots. */
  drop_bad: [160, 'u64'],
  /** tx: packets whose destination is the port they came from. */
  drop_nodst: [168, 'u64'],
  /** rx: packets lost because the ring had no room. */
  drop_full: [176, 'u64'],
  /** rx: packets lost because the ring was stopped. */
  drop_stopped: [184, 'u64'],
  /** rx: packets lost because a slot of the receiver was bad, or its buffer smaller than the packet's slot. */
  drop_dst: [192, 'u64'],
  /** rx: packets lost because they ask for an offload that cannot be done for a receiver without VirtIO header. */
  drop_offload: [200, 'u64'],
  /** Times the ring's indexes had to be put right (R7). */
  repairs: [208, 'u64'],
  /** Interrupts asked for. */
  signals: [216, 'u64'],
  /** rx: packets that segmentation added: a packet cut into n counts n in `packets` and n - 1 here. */
  segments: [224, 'u64'],
  /** tx: turns in which the ring moved nothing, since it last did (docs/datapath.md, parked rings). */
  idle: [232, 'u64'],
  /** Ports of interfaces, tx: 1 while the ring's nic_queue is being opened, so that what is to be sent waits. */
  nic_opening: [240, 'u64'],
});

/** One port. Control code fills the rings and vnet_hdr_len, valeAttach the rest. */
export const port = struct('port', 192, {
  /** Arena address of the domain; 0 while not attached. */
  domain: [0, 'u32'],
  /** Index in the switch's table of ports. */
  port_id: [4, 'u32'],
  num_tx_rings: [8, 'u32'],
  num_rx_rings: [12, 'u32'],
  /** VirtIO network header of this port's frames: 0, 10 or 12 bytes. Changed only while the port's rings are stopped. */
  vnet_hdr_len: [16, 'u32'],
  /** Position in the domain's list `active`. */
  active_idx: [20, 'u32'],
  /** u32 arena addresses of the krings. */
  tx_rings: [64, 'bytes', 4 * NM_BDG_MAXRINGS],
  rx_rings: [128, 'bytes', 4 * NM_BDG_MAXRINGS],
});

/** An entry of a VALE switch's table of addresses; all 0 while free. */
export const hash_ent = struct('hash_ent', 8, {
  /** port_id + 1 */
  port: [0, 'u16'],
  mac: [2, 'bytes', 6],
});

/** One slot of the batch being forwarded (netmap's nm_bdg_fwd): checked, private copy of a sender's slot. */
export const nm_bdg_fwd = struct('nm_bdg_fwd', 8, {
  /** Arena address of the slot's buffer. */
  src: [0, 'u32'],
  len: [4, 'u16'],
  /** Slots of the packet, in its first slot. */
  frags: [6, 'u8'],
  /** In the packet's first slot: 0, NS_NO_LEARN, or a flag of src/datapath/resolve.ts. */
  flags: [7, 'u8'],
});

/** A sender's VirtIO network header, checked: private copy, one for each entry of `ft` (used in a packet's first). */
export const vnet_ent = struct('vnet_ent', 16, { header: [0, 'bytes', 16] });

/** Bytes of a packet's headers that are looked at: Ethernet, VLAN tags, IP with options, TCP with options. */
export const OFFLOAD_HDR_BYTES = 256;

/**
 * What the offloads keep of the packet in hand (src/datapath/offload*.ts): where they read, where they write, the sum of
 * what they wrote, and a private copy of its protocol headers.
 */
export const offload = struct('offload', 640, {
  /** Where to read: entry of `ft` and offset in its slot, and the end of the packet's entries. */
  src_ft: [0, 'u32'],
  src_ofs: [4, 'u32'],
  src_end: [8, 'u32'],
  /** Where to write: index in `bufs` and offset in that buffer. */
  dst_buf: [12, 'u32'],
  dst_ofs: [16, 'u32'],
  buf_size: [20, 'u32'],
  /** Sum of the 16-bit words written, and 1 if the next byte is the second of a word. */
  sum: [24, 'u32'],
  odd: [28, 'u32'],
  /** Where in hdr the IP and TCP/UDP headers begin, and where the headers end; 1 for IPv6. */
  l3: [32, 'u32'],
  l4: [36, 'u32'],
  hdr_len: [40, 'u32'],
  ipv6: [44, 'u32'],
  /** Arena addresses of the buffers of the frame being written. */
  bufs: [64, 'bytes', 4 * NETMAP_MAX_FRAGS],
  hdr: [320, 'bytes', OFFLOAD_HDR_BYTES],
});

/** Slots taken before they are forwarded; the chain that starts last may run past it (docs/datapath.md). */
export const FT_GROUP = 256;

/**
 * A queue of an interface: four rings as an AF_XDP socket has them (linux/if_xdp.h), shared with the kernel or with the
 * pump of a TAP interface or packet socket (src/kloop/nic-*.ts), and the two krings whose slots they exchange frames with, by
 * buffer. The krings' user is a guest (direct), or the datapath itself, which plays the application of a port of a
 * switch (hosted). Its datapath thread fills it before nicUp and owns it.
 */
export const nic_queue = struct('nic_queue', 192, {
  /** Arena address of the domain; 0 while not up. */
  domain: [0, 'u32'],
  /** 1 while the rings may be touched. */
  active: [4, 'u32'],
  /** 1: the datapath is the krings' application. */
  hosted: [8, 'u32'],
  /** Position in the domain's list `nics`. */
  idx: [12, 'u32'],
  /** Arena addresses: of the port's rings (as seen by their user), and of what the rings' addresses are relative to. */
  tx_kring: [16, 'u32'],
  rx_kring: [20, 'u32'],
  umem: [24, 'u32'],
  /** Bytes before a buffer that a fill address means. */
  headroom: [28, 'u32'],
  /** Entries of each of the four rings, less 1. */
  mask: [32, 'u32'],
  /** Arena addresses of words of the four rings, and of their entries. */
  rx_producer: [36, 'u32'],
  rx_consumer: [40, 'u32'],
  rx_desc: [44, 'u32'],
  tx_producer: [48, 'u32'],
  tx_desc: [52, 'u32'],
  fill_producer: [56, 'u32'],
  fill_desc: [60, 'u32'],
  completion_producer: [64, 'u32'],
  completion_consumer: [68, 'u32'],
  /** u32[]: buffers of the ring that receives, for slots whose own are bad (R7). */
  ledger: [72, 'u32'],
  /** Our ends of the rings. */
  rx_cons: [76, 'u32'],
  tx_prod: [80, 'u32'],
  fill_prod: [84, 'u32'],
  comp_cons: [88, 'u32'],
  /** Entries handed over for sending, and not completed. */
  in_flight: [92, 'u32'],
  /** Entries handed over since the last system call; set to 0 by whoever makes it. */
  kick: [96, 'u32'],
  /** Ring of what is sent: slots before it are sent, and free again. */
  done: [100, 'u32'],
  /** Hosted: what the application of the port's rings has done. tx: head, and slots before which buffers were refilled. */
  tx_head: [104, 'u32'],
  refilled: [108, 'u32'],
  /** rx: slots before which all were handed over for sending, and head. */
  sent: [112, 'u32'],
  rx_head: [116, 'u32'],
  /** Slots of one frame, at most. */
  max_pieces: [120, 'u32'],
  /** 1: the card reaches the buffers itself. Else the errno for which it does not, 0 if that was not tried. */
  zero_copy: [124, 'u32'],
  copy_errno: [128, 'u32'],
  /** 1: the next packet to send is a bad one, which waits until nothing is in flight. */
  bad_waits: [132, 'u32'],
});

/** Arena addresses of krings, most the rings of a full switch and its monitors. */
const ringList = 4 * (NM_BDG_MAXPORTS * NM_BDG_MAXRINGS + MAX_MONITOR_RINGS);

/**
 * A VALE switch, a pipe, or null ports. Control code gives it zeroed pages and calls valeInit, pipeInit or nullInit. Lists hold u32 arena addresses, `num_` says
 * how many.
 */
export const domain = struct('domain', 128 * 1024, {
  /** DOMAIN_VALE, DOMAIN_PIPE, DOMAIN_NULL, DOMAIN_NIC */
  kind: [0, 'u32'],
  num_active: [4, 'u32'],
  num_tx_running: [8, 'u32'],
  num_rx_running: [12, 'u32'],
  num_dirty: [16, 'u32'],
  /** Read and set to 0 by whoever writes the eventfds: kloop/datapath.ts, drainSignals. */
  num_signals: [20, 'u32'],
  /** Where in tx_running the next turn begins serving, so that nobody is always first (R8). */
  turn: [24, 'u32'],
  /** Slots in `ft`. */
  num_ft: [28, 'u32'],
  /** rx rings of the domain's monitors. */
  num_monitor_rings: [32, 'u32'],
  num_nics: [36, 'u32'],
  /** How many of tx_running, from the first on, are served in every turn; the others are parked. */
  num_tx_polled: [40, 'u32'],
  /** Where in tx_running the next turn goes on looking at parked rings. */
  sweep: [44, 'u32'],
  /** A switch: an rx ring that had no room for a packet, 0: none. Read and set to 0 by the loop (kloop.ts). */
  full: [48, 'u32'],
  /** Ports by port_id; 0 where there is none. */
  ports: [64, 'bytes', 4 * NM_BDG_MAXPORTS],
  /** Attached ports, in no order. */
  active: [1088, 'bytes', 4 * NM_BDG_MAXPORTS],
  /** hash_ent[NM_BDG_HASH] */
  ht: [4096, 'bytes', hash_ent.size * NM_BDG_HASH],
  tx_running: [12288, 'bytes', ringList],
  rx_running: [12288 + 16384, 'bytes', ringList],
  /** rx rings used in this batch, to be published at its end. */
  dirty: [12288 + 2 * 16384, 'bytes', ringList],
  /** Rings whose owner is to be interrupted. */
  signals: [12288 + 3 * 16384, 'bytes', 2 * ringList],
  offload: [94 * 1024, 'bytes', offload.size],
  /** Words of the slots of the packet that monitors are being shown. */
  mon_words: [96 * 1024, 'bytes', 8 * NETMAP_MAX_FRAGS],
  /** nic_queues that are up. */
  nics: [100 * 1024, 'bytes', 4 * NM_BDG_MAXPORTS * NM_BDG_MAXRINGS],
  ft: [116 * 1024, 'bytes', nm_bdg_fwd.size * (FT_GROUP + NETMAP_MAX_FRAGS)],
  /** vnet_ent for each entry of `ft` */
  vnet: [119 * 1024, 'bytes', vnet_ent.size * (FT_GROUP + NETMAP_MAX_FRAGS)],
});
