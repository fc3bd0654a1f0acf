/**
 * Packet sockets (packet(7)): the frames of an interface where AF_XDP is not to be had. The kernel takes VLAN tags out of
 * frames before it gives them to a packet socket; here they are put back.
 */
import { errno, SysError } from './errno.ts';
import { closeFd } from './events.ts';
import { check, lastErrno, libc, scratch } from './libc.ts';
import { FrameVector } from './tap.ts';

const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOCK_CLOEXEC_NONBLOCK = 0x80800;
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const SOL_PACKET = 263;
const PACKET_ADD_MEMBERSHIP = 1;
const PACKET_STATISTICS = 6;
const PACKET_AUXDATA = 8;
const PACKET_QDISC_BYPASS = 20;
const PACKET_IGNORE_OUTGOING = 23;
const PACKET_MR_PROMISC = 1;
const ETH_P_ALL = 3;
const RECEIVE_BYTES = 4 * 2 ** 20;
const TP_STATUS_VLAN_VALID = 0x10;
const TP_STATUS_VLAN_TPID_VALID = 0x40;
const ETH_P_8021Q = 0x8100;
const MSG_DONTWAIT = 0x40;
const MSG_TRUNC = 0x20;
/** Where a VLAN tag belongs in a frame. */
export const TAG_AT = 12;

function socket(protocol: number): number {
  const bigEndian = ((protocol & 0xff) << 8) | (protocol >> 8);
  const fd = libc.socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC_NONBLOCK, bigEndian);
  if (fd < 0 && lastErrno() === errno.EPERM) {
    throw new SysError('an interface of the host as a port: the daemon has to be root (docs/nics.md)', errno.EPERM);
  }
  return check(fd, 'socket(AF_PACKET)');
}

function setOption(fd: number, level: number, name: number, bytes: Uint8Array, what: string): void {
  const value = scratch(bytes.length);
  value.u8.set(bytes);
  check(libc.setsockopt(fd, level, name, value.address, bytes.length), `setsockopt(AF_PACKET, ${what})`);
}

const word = (value: number): Uint8Array => new Uint8Array(Uint32Array.of(value).buffer);

/**
 * Has an interface receive all frames for as long as the descriptor returned is open.
 */
export function promiscuous(ifindex: number): number {
  const fd = socket(0);
  try {
    // struct packet_mreq: ifindex, type u16, address length u16, address[8]
    const mreq = new Uint8Array(16);
    const view = new DataView(mreq.buffer);
    view.setUint32(0, ifindex, true);
    view.setUint16(4, PACKET_MR_PROMISC, true);
    setOption(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, mreq, 'promiscuous mode');
    return fd;
  } catch (e) {
    closeFd(fd);
    throw e;
  }
}

/** A packet socket on an interface: a read is a frame that it received (not one that it sent), a write is one to send. */
export function packetSocket(ifindex: number): number {
  const fd = socket(0);
  try {
    setOption(fd, SOL_SOCKET, SO_RCVBUFFORCE, word(RECEIVE_BYTES), 'receive buffer');
    setOption(fd, SOL_PACKET, PACKET_AUXDATA, word(1), 'PACKET_AUXDATA');
    // What is sent does not pass the tc programs of the host's rings (bpf.ts, redirectAll).
    setOption(fd, SOL_PACKET, PACKET_QDISC_BYPASS, word(1), 'PACKET_QDISC_BYPASS');
    setOption(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, word(1), 'PACKET_IGNORE_OUTGOING');
    // struct sockaddr_ll: family, protocol (big endian), ifindex; bound with a protocol, it receives
    const sockaddr = scratch(20);
    sockaddr.view.setUint16(0, AF_PACKET, true);
    sockaddr.view.setUint16(2, ETH_P_ALL, false);
    sockaddr.view.setInt32(4, ifindex, true);
    check(libc.bind(fd, sockaddr.address, 20), `bind a packet socket to interface ${ifindex}`);
    return fd;
  } catch (e) {
    closeFd(fd);
    throw e;
  }
}

/** Frames of packet sockets, in pieces. */
export class PacketVector extends FrameVector {
  /** The VLAN tag that the kernel took out of the last frame read: TPID and TCI, 4 bytes; it belongs at `TAG_AT`. */
  tag: readonly number[] = [];
  // struct msghdr: name, namelen, iov 16, iovlen 24, control 32, controllen 40, flags 48
  readonly #msg = scratch(56);
  // struct cmsghdr (16 bytes), struct tpacket_auxdata: status, len, snaplen, mac u16, net u16, vlan_tci u16, vlan_tpid u16
  readonly #control = scratch(64);
  readonly #statistics = scratch(12);

  /** Frames that a socket had no room for since it was last asked. */
  dropped(fd: number): number {
    // struct tpacket_stats: packets, drops: u32; the length after it
    const { view, address } = this.#statistics;
    view.setUint32(8, 8, true);
    return libc.getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, address, address + 8) < 0 ? 0 : view.getUint32(4, true);
  }

  override read(fd: number, i: number, count: number): number {
    const { view } = this.#msg;
    view.setBigUint64(16, BigInt(this.addressOf(i)), true);
    view.setBigUint64(24, BigInt(count), true);
    view.setBigUint64(32, BigInt(this.#control.address), true);
    view.setBigUint64(40, 64n, true);
    const n = libc.recvmsg(fd, this.#msg.address, MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0) return -lastErrno();
    const control = this.#control.view;
    const status = Number(view.getBigUint64(40, true)) >= 36 ? control.getUint32(16, true) : 0;
    if ((status & TP_STATUS_VLAN_VALID) === 0) {
      if (this.tag.length > 0) this.tag = [];
      return n;
    }
    const tpid = (status & TP_STATUS_VLAN_TPID_VALID) === 0 ? ETH_P_8021Q : control.getUint16(34, true);
    const tci = control.getUint16(32, true);
    this.tag = [tpid >> 8, tpid & 0xff, tci >> 8, tci & 0xff];
    return n;
  }
}
