/** UNIX stream sockets that carry descriptors (SCM_RIGHTS), and who is at the other end. */
import { chmodSync } from 'node:fs';
import { errno, SysError } from './errno.ts';
import { addressOf, check, lastErrno, libc, scratch } from './libc.ts';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0x800;
const SOCK_CLOEXEC = 0x80000;
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SCM_RIGHTS = 1;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
const MSG_CTRUNC = 8;
/** Most descriptors that one message can carry here; the kernel's own limit (SCM_MAX_FD). */
export const SCM_MAX_FD = 253;

const CMSG_HEADER = 16;
// struct sockaddr_un: family u16, path[108]
const sockaddr = scratch(110);

function fillAddress(path: string): number {
  const bytes = Buffer.from(path);
  if (bytes.length === 0 || bytes.length > 107) {
    throw new RangeError(`socket path "${path}" has ${bytes.length} bytes; UNIX sockets allow 1 to 107`);
  }
  sockaddr.u8.fill(0);
  sockaddr.view.setUint16(0, AF_UNIX, true);
  sockaddr.u8.set(bytes, 2);
  return 2 + bytes.length + 1;
}

/** A listening socket, non-blocking, at a path that must not exist, with the given file mode. */
export function listenUnix(path: string, mode = 0o600, backlog = 16): number {
  const len = fillAddress(path);
  const fd = check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket');
  try {
    // The directory is private (R21), so nobody can connect between bind and chmod.
    check(libc.bind(fd, sockaddr.address, len), `bind("${path}")`);
    chmodSync(path, mode);
    check(libc.listen(fd, backlog), `listen("${path}")`);
  } catch (e) {
    libc.close(fd);
    throw e;
  }
  return fd;
}

/** Connects to a listening socket; the descriptor returned is non-blocking. */
export function connectUnix(path: string): number {
  const len = fillAddress(path);
  const fd = check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket');
  if (libc.connect(fd, sockaddr.address, len) < 0) {
    const e = lastErrno();
    libc.close(fd);
    throw new SysError(`connect("${path}")`, e);
  }
  return fd;
}

/** Accepts a connection (non-blocking descriptor), or -1 if none waits. */
export function acceptUnix(fd: number): number {
  const got = libc.accept4(fd, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (got >= 0) return got;
  const e = lastErrno();
  if (e === errno.EAGAIN || e === errno.EINTR || e === errno.ECONNABORTED) return -1;
  throw new SysError(`accept(fd ${fd})`, e);
}

/** A connected pair of non-blocking sockets. */
export function socketPair(): [number, number] {
  const sv = scratch(8);
  check(libc.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv.address), 'socketpair');
  return [sv.view.getInt32(0, true), sv.view.getInt32(4, true)];
}

export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** Who connected (SO_PEERCRED): as it was at connect or socketpair time. */
export function peerCredentials(fd: number): PeerCredentials {
  const cred = scratch(12);
  const len = scratch(4);
  len.view.setUint32(0, 12, true);
  check(libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, cred.address, len.address), `getsockopt(fd ${fd}, SO_PEERCRED)`);
  return { pid: cred.view.getInt32(0, true), uid: cred.view.getUint32(4, true), gid: cred.view.getUint32(8, true) };
}

/** What one receive call brought. */
export interface Received {
  /** Bytes read; 0 with `ended` at end of file. */
  bytes: number;
  ended: boolean;
  /** True if nothing was there to read now. */
  again: boolean;
  /** Descriptors received, close-on-exec; the caller owns them. */
  fds: number[];
  /** MSG_CTRUNC: control data (descriptors) was cut; the kernel closed what did not fit. */
  truncated: boolean;
}

/**
 * Sends and receives on one socket with buffers allocated once. Never blocks.
 * struct msghdr (56 bytes): name, namelen, iov 16, iovlen 24, control 32, controllen 40, flags 48.
 */
export class MessageSocket {
  readonly fd: number;
  readonly #msg = scratch(56);
  readonly #iov = scratch(16);
  readonly #control: ReturnType<typeof scratch>;
  readonly #maxFds: number;
  /** What the kernel has the address of: nothing else may refer to it any more during the call (see `scratch`). */
  readonly #held: Uint8Array[] = [];

  /** @param maxFds most descriptors accepted in one receive; more set `truncated` */
  constructor(fd: number, maxFds = 16) {
    this.fd = fd;
    this.#maxFds = maxFds;
    this.#control = scratch(CMSG_HEADER + 4 * SCM_MAX_FD + 4);
    this.#msg.view.setBigUint64(16, BigInt(this.#iov.address), true);
    this.#msg.view.setBigUint64(24, 1n, true);
  }

  /** Reads into `into`. @throws SysError on errors other than EAGAIN; a reset connection counts as ended. */
  receive(into: Uint8Array): Received {
    const out: Received = { bytes: 0, ended: false, again: false, fds: [], truncated: false };
    this.#setIov(into);
    this.#msg.view.setBigUint64(32, BigInt(this.#control.address), true);
    // CMSG_LEN, not CMSG_SPACE: the padding of CMSG_SPACE would let one descriptor more in.
    this.#msg.view.setBigUint64(40, BigInt(CMSG_HEADER + 4 * this.#maxFds), true);
    this.#msg.view.setInt32(48, 0, true);
    const n = libc.recvmsg(this.fd, this.#msg.address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) {
      const e = lastErrno();
      if (e === errno.EAGAIN || e === errno.EINTR) out.again = true;
      else if (e === errno.ECONNRESET) out.ended = true;
      else throw new SysError(`recvmsg(fd ${this.fd})`, e);
      return out;
    }
    out.bytes = n;
    out.ended = n === 0 && into.length > 0;
    out.truncated = (this.#msg.view.getInt32(48, true) & MSG_CTRUNC) !== 0;
    const end = Number(this.#msg.view.getBigUint64(40, true));
    for (let p = 0; p + CMSG_HEADER <= end; ) {
      const len = Number(this.#control.view.getBigUint64(p, true));
      if (len < CMSG_HEADER) break;
      const level = this.#control.view.getInt32(p + 8, true);
      const type = this.#control.view.getInt32(p + 12, true);
      if (level === SOL_SOCKET && type === SCM_RIGHTS) {
        for (let q = p + CMSG_HEADER; q + 4 <= Math.min(p + len, end); q += 4) {
          out.fds.push(this.#control.view.getInt32(q, true));
        }
      }
      p += (len + 7) & ~7;
    }
    return out;
  }

  /**
   * Writes bytes, with descriptors (which stay the caller's) attached to the first of them.
   * Returns the bytes written, 0 if the socket is full. @throws SysError, EPIPE included
   */
  send(bytes: Uint8Array, fds: readonly number[] = []): number {
    if (fds.length > SCM_MAX_FD)
      throw new RangeError(`${fds.length} descriptors in one message, at most ${SCM_MAX_FD}`);
    this.#setIov(bytes);
    if (fds.length > 0) {
      this.#control.view.setBigUint64(0, BigInt(CMSG_HEADER + 4 * fds.length), true);
      this.#control.view.setInt32(8, SOL_SOCKET, true);
      this.#control.view.setInt32(12, SCM_RIGHTS, true);
      fds.forEach((fd, i) => this.#control.view.setInt32(CMSG_HEADER + 4 * i, fd, true));
      this.#msg.view.setBigUint64(32, BigInt(this.#control.address), true);
      this.#msg.view.setBigUint64(40, BigInt(CMSG_HEADER + ((4 * fds.length + 7) & ~7)), true);
    } else {
      this.#msg.view.setBigUint64(32, 0n, true);
      this.#msg.view.setBigUint64(40, 0n, true);
    }
    this.#msg.view.setInt32(48, 0, true);
    const n = libc.sendmsg(this.fd, this.#msg.address, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) return n;
    const e = lastErrno();
    if (e === errno.EAGAIN || e === errno.EINTR) return 0;
    throw new SysError(`sendmsg(fd ${this.fd})`, e);
  }

  #setIov(bytes: Uint8Array): void {
    this.#held[0] = bytes;
    this.#iov.view.setBigUint64(0, BigInt(bytes.length === 0 ? 0 : addressOf(bytes)), true);
    this.#iov.view.setBigUint64(8, BigInt(bytes.length), true);
  }
}
