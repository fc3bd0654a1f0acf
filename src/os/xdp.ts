/**
 * AF_XDP sockets (headers linux/if_xdp.h; Documentation/networking/af_xdp.rst): a queue of an interface whose frames lie in
 * memory of ours, the UMEM. What was tried, and what was found: docs/nics.md. Addresses are process addresses.
 */
import { errno, SysError } from './errno.ts';
import { closeFd } from './events.ts';
import { check, lastErrno, libc, scratch } from './libc.ts';

const AF_XDP = 44;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0x80000;
const SOL_XDP = 283;
const XDP_MMAP_OFFSETS = 1;
const XDP_RX_RING = 2;
const XDP_TX_RING = 3;
const XDP_UMEM_REG = 4;
const XDP_UMEM_FILL_RING = 5;
const XDP_UMEM_COMPLETION_RING = 6;
const XDP_STATISTICS = 7;
const XDP_MAX_TX_SKB_BUDGET = 9;
const XDP_UMEM_UNALIGNED_CHUNK_FLAG = 1;
const XDP_COPY = 2;
const XDP_ZEROCOPY = 4;
const XDP_USE_NEED_WAKEUP = 8;
const XDP_USE_SG = 16;
const PGOFF = { rx: 0, tx: 0x80000000, fill: 0x100000000, completion: 0x180000000 } as const;
const MAP_SHARED_FIXED_POPULATE = 0x8011;
const MSG_DONTWAIT = 0x40;
/** What one sendto may send; the kernel's own is 32. */
const TX_BUDGET = 512;

/** Bytes that XDP keeps in front of every frame. */
export const XDP_PACKET_HEADROOM = 256;
/** Bytes of a chunk of UMEM, headroom included. */
export const XDP_CHUNK_MIN = 2048;
export const XDP_CHUNK_MAX = 4096;
/**
 * Bytes of the chunk that begins XDP_PACKET_HEADROOM before a buffer: of the buffer, a multiple of 128, to which some cards'
 * drivers round up (i40e's `dbuff`).
 */
export const xdpChunk = (bufSize: number): number => Math.floor(bufSize / 128) * 128 + XDP_PACKET_HEADROOM;
/** Flag of a ring: the kernel waits for a system call. */
export const XDP_RING_NEED_WAKEUP = 1;
/** Slots of one frame: what an skb can have as pieces. */
export const XDP_MAX_PIECES = 17;

export const XSK_RINGS = ['rx', 'tx', 'fill', 'completion'] as const;
export type XskRingName = (typeof XSK_RINGS)[number];

/** Bytes of an entry: descriptors (struct xdp_desc), or addresses. */
const ENTRY: Readonly<Record<XskRingName, number>> = { rx: 16, tx: 16, fill: 8, completion: 8 };

/** Bytes to reserve for a ring's mapping, whatever the kernel's offsets are. */
export function xskRingBytes(ring: XskRingName, entries: number): number {
  return 4096 + Math.ceil((ENTRY[ring] * entries) / 4096) * 4096;
}

/** Where a mapped ring's words are, as offsets in its mapping. */
export interface XskRing {
  readonly producer: number;
  readonly consumer: number;
  readonly flags: number;
  readonly desc: number;
}

export interface XskConfig {
  readonly ifindex: number;
  readonly queue: number;
  readonly umem: { readonly address: number; readonly bytes: number };
  /** Bytes of a buffer; a frame begins at one's start, and 256 bytes before it have to be UMEM too. */
  readonly bufSize: number;
  /** Entries of each ring, a power of two. */
  readonly entries: number;
  /** Whether the card is to reach the buffers itself; else the kernel copies each frame. */
  readonly zeroCopy: boolean;
  /** Whether a frame may be in several buffers. */
  readonly chains: boolean;
  /** Where each ring is to be mapped: `xskRingBytes` bytes. */
  readonly at: Readonly<Record<XskRingName, number>>;
}

/** A socket on one queue of an interface. */
export class Xsk {
  readonly fd: number;
  readonly zeroCopy: boolean;
  readonly chains: boolean;
  readonly rings: Readonly<Record<XskRingName, XskRing>>;
  /** struct xdp_statistics (48 bytes), its length. */
  readonly #statistics = scratch(52);

  /**
   * Maps the rings and binds.
   * @throws SysError EBUSY: the queue has a socket, or one that has just been closed is not yet gone; others: the driver has no
   * zero copy, or none with chains
   */
  constructor(config: XskConfig) {
    const { ifindex, queue, umem, bufSize, entries, zeroCopy, chains, at } = config;
    this.zeroCopy = zeroCopy;
    this.chains = chains;
    this.fd = check(libc.socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0), 'socket(AF_XDP)');
    try {
      const reg = scratch(32);
      reg.view.setBigUint64(0, BigInt(umem.address), true);
      reg.view.setBigUint64(8, BigInt(umem.bytes), true);
      reg.view.setUint32(16, xdpChunk(bufSize), true);
      reg.view.setUint32(24, XDP_UMEM_UNALIGNED_CHUNK_FLAG, true);
      this.#set(XDP_UMEM_REG, reg, 'XDP_UMEM_REG');
      const number = scratch(4);
      number.view.setUint32(0, entries, true);
      for (const name of [XDP_RX_RING, XDP_TX_RING, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING]) {
        this.#set(name, number, `ring ${name} of ${entries} entries`);
      }
      number.view.setUint32(0, Math.min(entries, TX_BUDGET), true);
      libc.setsockopt(this.fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, number.address, 4); // Linux 6.17; else 32
      this.rings = this.#offsets();
      for (const ring of XSK_RINGS) {
        const bytes = this.rings[ring].desc + ENTRY[ring] * entries;
        check(
          libc.mmap(at[ring], bytes, 3, MAP_SHARED_FIXED_POPULATE, this.fd, PGOFF[ring]),
          `mmap(the ${ring} ring of AF_XDP)`,
        );
      }
      const sockaddr = scratch(16);
      sockaddr.view.setUint16(0, AF_XDP, true);
      const how = (zeroCopy ? XDP_ZEROCOPY : XDP_COPY) | (chains ? XDP_USE_SG : 0);
      sockaddr.view.setUint16(2, how | XDP_USE_NEED_WAKEUP, true);
      sockaddr.view.setUint32(4, ifindex, true);
      sockaddr.view.setUint32(8, queue, true);
      check(
        libc.bind(this.fd, sockaddr.address, 16),
        `bind an AF_XDP socket to queue ${queue} of interface ${ifindex}`,
      );
    } catch (e) {
      closeFd(this.fd);
      throw e;
    }
  }

  /** Has the kernel send what is in the tx ring. Returns 0 or the errno: EAGAIN, ENOBUFS and EBUSY pass. */
  kickTx(): number {
    return libc.sendto(this.fd, 0, 0, MSG_DONTWAIT, 0, 0) >= 0 ? 0 : lastErrno();
  }

  /** Has the driver look at the fill ring (XDP_RING_NEED_WAKEUP). */
  kickRx(): void {
    libc.recvfrom(this.fd, 0, 0, MSG_DONTWAIT, 0, 0);
  }

  /** Frames that the kernel dropped because the rx ring was full, or for other reasons of its own. Makes no garbage. */
  dropped(): number {
    const { view, address } = this.#statistics;
    view.setUint32(48, 48, true);
    check(libc.getsockopt(this.fd, SOL_XDP, XDP_STATISTICS, address, address + 48), 'XDP_STATISTICS');
    const word = (i: number): number => view.getUint32(8 * i, true) + view.getUint32(8 * i + 4, true) * 2 ** 32;
    return word(0) + word(3);
  }

  /** Closes the socket. Its mappings keep it bound: they have to be replaced before. */
  close(): void {
    closeFd(this.fd);
  }

  #set(name: number, value: ReturnType<typeof scratch>, what: string): void {
    check(libc.setsockopt(this.fd, SOL_XDP, name, value.address, value.u8.length), `setsockopt(AF_XDP, ${what})`);
  }

  #offsets(): Record<XskRingName, XskRing> {
    const value = scratch(128);
    const length = scratch(4);
    length.view.setUint32(0, 128, true);
    check(libc.getsockopt(this.fd, SOL_XDP, XDP_MMAP_OFFSETS, value.address, length.address), 'XDP_MMAP_OFFSETS');
    if (length.view.getUint32(0, true) !== 128)
      throw new SysError('XDP_MMAP_OFFSETS: Linux 5.4 is needed', errno.ENOSYS);
    const ring = (i: number): XskRing => {
      const word = (j: number): number => Number(value.view.getBigUint64(32 * i + 8 * j, true));
      return { producer: word(0), consumer: word(1), desc: word(2), flags: word(3) };
    };
    return { rx: ring(0), tx: ring(1), fill: ring(2), completion: ring(3) };
  }
}
