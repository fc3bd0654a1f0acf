/**
 * TAP interfaces of Linux (header linux/if_tun.h): Ethernet interfaces of this process's network namespace whose cable
 * ends in descriptors. They go away with their last descriptor.
 */
import { errno, SysError } from './errno.ts';
import { closeFd } from './events.ts';
import { addressOf, check, lastErrno, libc, scratch } from './libc.ts';
import { fillName } from './netif.ts';

const O_RDWR = 2;
const O_NONBLOCK = 0x800;
const O_CLOEXEC = 0x80000;
const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const TUNSETVNETHDRSZ = 0x400454d8;
const IFF_TAP = 0x0002;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const TUN_F_CSUM = 1;
const TUN_F_TSO4 = 2;
const TUN_F_TSO6 = 4;
const TUN_F_TSO_ECN = 8;

/** Offloads that the reader of a TAP interface does for the network stack. */
export interface TapOffload {
  /** Checksums of TCP and UDP may be pending. */
  readonly txcsum: boolean;
  /** TCP segments longer than the MTU (needs txcsum). */
  readonly tso: boolean;
}

export interface Tap {
  /** The interface's name. */
  readonly name: string;
  /** One descriptor for each queue, non-blocking: a read or write is a frame, header included. */
  readonly fds: readonly number[];
}

/**
 * Makes a TAP interface in the calling thread's network namespace.
 * @param name at most 15 bytes; "%d" stands for the first free number @param queues descriptors
 * @param vnetHdrLen bytes of the VirtIO network header of every frame; 0: none, and no offloads
 * @throws SysError: EBUSY (the name is in use), EPERM (not permitted), ENOENT (no /dev/net/tun)
 */
export function openTap(name: string, queues: number, vnetHdrLen: number, offload: TapOffload): Tap {
  const fds: number[] = [];
  const ifreq = scratch(40);
  let given = name;
  try {
    for (let i = 0; i < queues; i++) {
      const fd = check(libc.open('/dev/net/tun', O_RDWR | O_NONBLOCK | O_CLOEXEC, 0), 'open("/dev/net/tun")');
      fds.push(fd);
      fillName(ifreq.u8, given);
      const flags = IFF_TAP | IFF_NO_PI | (vnetHdrLen > 0 ? IFF_VNET_HDR : 0) | (queues > 1 ? IFF_MULTI_QUEUE : 0);
      ifreq.view.setUint16(16, flags, true);
      if (libc.ioctl(fd, TUNSETIFF, ifreq.address) < 0) throw tapError(given, lastErrno());
      given = new TextDecoder().decode(ifreq.u8.subarray(0, 16)).replace(/\0.*$/s, '');
    }
    if (vnetHdrLen > 0) setTapHeader({ name: given, fds }, vnetHdrLen);
    setTapOffload({ name: given, fds }, vnetHdrLen > 0 ? offload : { txcsum: false, tso: false });
    return { name: given, fds };
  } catch (e) {
    for (const fd of fds) closeFd(fd);
    throw e;
  }
}

function tapError(name: string, e: number): SysError {
  if (e === errno.EBUSY) return new SysError(`interface ${name} exists and belongs to another process`, e);
  if (e === errno.EINVAL) return new SysError(`interface ${name} exists and is no TAP interface of this kind`, e);
  if (e === errno.EPERM)
    return new SysError(`making interface ${name.replace('%d', '0')} takes the capability CAP_NET_ADMIN (root)`, e);
  return new SysError(`ioctl(/dev/net/tun, TUNSETIFF, "${name}")`, e);
}

/** Bytes of the VirtIO network header that the kernel parses. */
const VNET_HDR = 10;
const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;

/** Says how long the headers are that are read and written from now on, those of frames that wait included. */
export function setTapHeader(tap: Tap, bytes: number): void {
  const size = scratch(4);
  size.view.setInt32(0, bytes, true);
  for (const fd of tap.fds) {
    check(libc.ioctl(fd, TUNSETVNETHDRSZ, size.address), `ioctl(${tap.name}, TUNSETVNETHDRSZ, ${bytes})`);
  }
}

/** Says what the reader of the interface does for the network stack. */
function setTapOffload(tap: Tap, offload: TapOffload): void {
  const tso = offload.txcsum && offload.tso ? TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN : 0;
  const bits = (offload.txcsum ? TUN_F_CSUM : 0) | tso;
  check(libc.ioctl(tap.fds[0]!, TUNSETOFFLOAD, bits), `ioctl(${tap.name}, TUNSETOFFLOAD, ${bits})`);
}

/** Pieces of memory (an array of struct iovec) between which and a descriptor one frame at a time is moved. */
export class FrameVector {
  readonly #iov: Uint32Array;
  readonly #address: number;
  /** Pieces given as bytes: nothing else keeps them from being collected. */
  readonly #held: Uint8Array[] = [];

  constructor(length: number) {
    const iov = scratch(16 * length);
    this.#iov = new Uint32Array(iov.u8.buffer);
    this.#address = iov.address;
  }

  /** Makes piece i the `bytes` bytes at a process address. The caller keeps the memory there. */
  set(i: number, address: number, bytes: number): void {
    this.#iov[4 * i] = address % 2 ** 32;
    this.#iov[4 * i + 1] = Math.floor(address / 2 ** 32);
    this.#iov[4 * i + 2] = bytes;
  }

  /** Makes piece i these bytes, and keeps them. */
  hold(i: number, bytes: Uint8Array): void {
    this.#held[i] = bytes;
    this.set(i, addressOf(bytes), bytes.length);
  }

  /** Address of the struct iovec of piece i. */
  protected addressOf(i: number): number {
    return this.#address + 16 * i;
  }

  setBytes(i: number, bytes: number): void {
    this.#iov[4 * i + 2] = bytes;
  }

  /** Reads one frame into `count` pieces from i on. Bytes, or the negative errno. */
  read(fd: number, i: number, count: number): number {
    const n = libc.readv(fd, this.#address + 16 * i, count);
    return n >= 0 ? n : -lastErrno();
  }

  /** Writes one frame from `count` pieces from i on. Bytes, or the negative errno. */
  write(fd: number, i: number, count: number): number {
    const n = libc.writev(fd, this.#address + 16 * i, count);
    return n >= 0 ? n : -lastErrno();
  }
}

/**
 * Frames of a TAP interface that was opened with VirtIO headers, in pieces, for a user whose frames have such a header, which
 * is then part of the pieces, or have none. Then the kernel's are kept here: what it says is unfinished is not delivered,
 * and what is sent is finished.
 */
export class TapVector extends FrameVector {
  readonly #own: number;
  readonly #received = scratch(VNET_HDR);
  readonly #sent = scratch(VNET_HDR);
  readonly #beyond = scratch(1);

  /** @param vnetHdrLen bytes of the header of the user's frames: 0, 10 or 12 @throws SysError: the interface is gone */
  constructor(tap: Tap, length: number, vnetHdrLen: number, offload: TapOffload) {
    super(length + 2);
    this.#own = vnetHdrLen > 0 ? 0 : 1;
    setTapHeader(tap, vnetHdrLen > 0 ? vnetHdrLen : VNET_HDR);
    setTapOffload(tap, vnetHdrLen > 0 ? offload : { txcsum: false, tso: false });
  }

  override set(i: number, address: number, bytes: number): void {
    super.set(i + this.#own, address, bytes);
  }

  /** Bytes, more than the pieces have if the frame is longer or unfinished; or the negative errno. */
  override read(fd: number, i: number, count: number): number {
    const own = this.#own;
    if (own > 0) super.set(i, this.#received.address, VNET_HDR);
    super.set(i + own + count, this.#beyond.address, 1);
    const n = super.read(fd, i, own + count + 1);
    if (n < 0 || own === 0) return n;
    const { u8 } = this.#received;
    const unfinished = (u8[0]! & VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0 || u8[1] !== 0;
    return unfinished ? Infinity : n - VNET_HDR;
  }

  override write(fd: number, i: number, count: number): number {
    if (this.#own > 0) super.set(i, this.#sent.address, VNET_HDR);
    return super.write(fd, i, this.#own + count);
  }
}
