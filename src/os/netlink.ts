/** rtnetlink(7), as far as it is read here: messages and attributes of a reply, and whole tables (dumps). */
import { errno, SysError } from './errno.ts';
import { closeFd } from './events.ts';
import { check, lastErrno, libc, scratch } from './libc.ts';

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0x80000;
const NLM_F_REQUEST_DUMP = 0x301;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
/** Bytes of struct nlmsghdr. */
const NLMSGHDR = 16;
/** Longest datagram of the kernel. */
export const NETLINK_BYTES = 65536;

/** A message: its type, where its body begins and where it ends. */
export interface NetlinkMessage {
  readonly type: number;
  readonly at: number;
  readonly end: number;
}

/** The messages of a datagram of `bytes` bytes. */
export function* netlinkMessages(view: DataView, bytes: number): Generator<NetlinkMessage> {
  for (let p = 0; p + NLMSGHDR <= bytes; ) {
    const length = view.getUint32(p, true);
    if (length < NLMSGHDR || p + length > bytes) return;
    yield { type: view.getUint16(p + 4, true), at: p + NLMSGHDR, end: p + length };
    p += (length + 3) & ~3;
  }
}

/** Attributes from `at` to `end`: type, where the value begins and where it ends. */
export function* netlinkAttributes(view: DataView, at: number, end: number): Generator<NetlinkMessage> {
  for (let p = at; p + 4 <= end; ) {
    const length = view.getUint16(p, true);
    if (length < 4 || p + length > end) return;
    yield { type: view.getUint16(p + 2, true), at: p + 4, end: p + length };
    p += (length + 3) & ~3;
  }
}

/** A socket of this thread's network namespace. @param groups RTMGRP_… of what it is told of its own accord */
export function netlinkSocket(groups: number, flags = 0): number {
  const fd = check(libc.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, 0), 'socket(AF_NETLINK)');
  const sockaddr = scratch(12);
  sockaddr.view.setUint16(0, AF_NETLINK, true);
  sockaddr.view.setUint32(8, groups, true);
  try {
    check(libc.bind(fd, sockaddr.address, 12), 'bind(AF_NETLINK)');
    return fd;
  } catch (e) {
    closeFd(fd);
    throw e;
  }
}

/**
 * Has each entry of one of the kernel's tables looked at.
 * @param type RTM_GET… @param header bytes of the struct with which such messages begin
 */
export function netlinkDump(
  type: number,
  header: number,
  look: (view: DataView, message: NetlinkMessage) => void,
): void {
  const request = scratch(NLMSGHDR + header);
  request.view.setUint32(0, NLMSGHDR + header, true);
  request.view.setUint16(4, type, true);
  request.view.setUint16(6, NLM_F_REQUEST_DUMP, true);
  const answer = scratch(NETLINK_BYTES);
  const fd = netlinkSocket(0);
  try {
    check(libc.sendto(fd, request.address, request.u8.length, 0, 0, 0), 'send(AF_NETLINK)');
    for (;;) {
      const n = check(libc.recvfrom(fd, answer.address, NETLINK_BYTES, 0, 0, 0), 'recv(AF_NETLINK)');
      for (const message of netlinkMessages(answer.view, n)) {
        if (message.type === NLMSG_DONE) return;
        if (message.type === NLMSG_ERROR) {
          throw new SysError(`rtnetlink request ${type}`, -answer.view.getInt32(message.at, true));
        }
        look(answer.view, message);
      }
    }
  } finally {
    closeFd(fd);
  }
}

/** Receives what a non-blocking socket was told. Bytes; -1: nothing; 0: something was lost. */
export function netlinkReceive(fd: number, into: { readonly address: number }): number {
  const n = libc.recvfrom(fd, into.address, NETLINK_BYTES, 0, 0, 0);
  if (n >= 0) return n;
  return lastErrno() === errno.ENOBUFS ? 0 : -1;
}
