/**
 * What else a NIC port needs to know of an interface and to change there: queues, driver, offloads (ethtool's ioctl), and
 * what becomes of interfaces (rtnetlink(7)). Everything is of the calling thread's network namespace.
 */
import { closeFd, type Watch, watch } from './events.ts';
import { check, lastErrno, libc, scratch } from './libc.ts';
import { fillName } from './netif.ts';
import {
  NETLINK_BYTES,
  type NetlinkMessage,
  netlinkAttributes,
  netlinkDump,
  netlinkMessages,
  netlinkReceive,
  netlinkSocket,
} from './netlink.ts';

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0x80000;
const SOCK_NONBLOCK = 0x800;
const SIOCETHTOOL = 0x8946;
const ETHTOOL_GDRVINFO = 0x3;
const ETHTOOL_GGRO = 0x2b;
const ETHTOOL_SGRO = 0x2c;
const ETHTOOL_GFLAGS = 0x25;
const ETHTOOL_SFLAGS = 0x26;
const ETHTOOL_GCHANNELS = 0x3c;
const ETH_FLAG_RXVLAN = 1 << 8;
const ETH_FLAG_LRO = 1 << 15;
const RTMGRP_LINK = 1;
const RTM_NEWLINK = 16;
const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
/** Bytes of struct ifinfomsg: index at 4, flags at 8. */
const IFINFOMSG = 16;
const IFLA_MTU = 4;
const IFF_UP = 1;
const IFF_RUNNING = 0x40;

const ifreq = scratch(40);

/** One ethtool command, whose struct is `data`. Returns 0 or the errno. */
function ethtool(name: string, data: ReturnType<typeof scratch>): number {
  fillName(ifreq.u8, name);
  ifreq.view.setBigUint64(16, BigInt(data.address), true);
  const fd = check(libc.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket');
  try {
    return libc.ioctl(fd, SIOCETHTOOL, ifreq.address) >= 0 ? 0 : lastErrno();
  } finally {
    closeFd(fd);
  }
}

/** Receive queues of an interface; 1 if its driver does not say. */
export function interfaceQueues(name: string): number {
  // struct ethtool_channels: cmd, max_rx, max_tx, max_other, max_combined, rx, tx, other, combined
  const channels = scratch(36);
  channels.view.setUint32(0, ETHTOOL_GCHANNELS, true);
  if (ethtool(name, channels) !== 0) return 1;
  return Math.max(1, channels.view.getUint32(20, true) + channels.view.getUint32(32, true));
}

/** Name of an interface's driver, e.g. "veth", "tun", "virtio_net"; empty if it does not say. */
export function interfaceDriver(name: string): string {
  const info = scratch(196);
  info.view.setUint32(0, ETHTOOL_GDRVINFO, true);
  if (ethtool(name, info) !== 0) return '';
  return new TextDecoder().decode(info.u8.subarray(4, 36)).replace(/\0.*$/s, '');
}

function value(name: string, command: number, data = 0): number | undefined {
  const v = scratch(8);
  v.view.setUint32(0, command, true);
  v.view.setUint32(4, data, true);
  return ethtool(name, v) === 0 ? v.view.getUint32(4, true) : undefined;
}

/** What makes frames something else than what was on the wire: merging (LRO, GRO), taking VLAN tags out. ethtool's names. */
export const FRAME_OFFLOADS = ['lro', 'rxvlan', 'gro'] as const;
export type FrameOffload = (typeof FRAME_OFFLOADS)[number];

const FLAG = { lro: ETH_FLAG_LRO, rxvlan: ETH_FLAG_RXVLAN } as const;

/** Whether an offload is on; false if the interface does not say, or is gone. */
export function frameOffload(name: string, offload: FrameOffload): boolean {
  if (offload === 'gro') return value(name, ETHTOOL_GGRO) === 1;
  return ((value(name, ETHTOOL_GFLAGS) ?? 0) & FLAG[offload]) !== 0;
}

/** Turns an offload on or off. Returns whether the driver did so. */
export function setFrameOffload(name: string, offload: FrameOffload, on: boolean): boolean {
  if (offload === 'gro') value(name, ETHTOOL_SGRO, on ? 1 : 0);
  else {
    const flags = value(name, ETHTOOL_GFLAGS) ?? 0;
    value(name, ETHTOOL_SFLAGS, on ? flags | FLAG[offload] : flags & ~FLAG[offload]);
  }
  return frameOffload(name, offload) === on;
}

/** What is known of an interface after a change. */
export interface LinkChange {
  readonly ifindex: number;
  /** It is not in this network namespace any more. */
  readonly gone: boolean;
  /** It is up, and its link too. */
  readonly running: boolean;
  /** 0 if not said. */
  readonly mtu: number;
}

/**
 * Tells of changes of interfaces. Close what is returned to end that. Where the kernel had more to tell than it keeps for a
 * reader who is busy, all interfaces are told of as they are, and those that are there no more as gone.
 */
export function watchLinks(onChange: (change: LinkChange) => void): { close(): void } {
  const fd = netlinkSocket(RTMGRP_LINK, SOCK_NONBLOCK);
  try {
    const watching = watchSocket(fd, onChange);
    return {
      close: () => {
        watching.close();
        closeFd(fd);
      },
    };
  } catch (e) {
    closeFd(fd);
    throw e;
  }
}

function watchSocket(fd: number, onChange: (change: LinkChange) => void): Watch {
  const buffer = scratch(NETLINK_BYTES);
  const known = new Set(allLinks().map(({ ifindex }) => ifindex));
  const tell = (change: LinkChange): void => {
    if (change.gone) known.delete(change.ifindex);
    else known.add(change.ifindex);
    onChange(change);
  };
  return watch(fd, { readable: true, writable: false }, () => {
    let lost = false;
    for (let n = 0; (n = netlinkReceive(fd, buffer)) >= 0; ) {
      if (n === 0) lost = true;
      for (const message of netlinkMessages(buffer.view, n)) {
        const change = parseLink(buffer.view, message);
        if (change !== undefined) tell(change);
      }
    }
    if (!lost) return;
    const there = allLinks();
    const gone = [...known].filter((ifindex) => !there.some((link) => link.ifindex === ifindex));
    for (const ifindex of gone) tell({ ifindex, gone: true, running: false, mtu: 0 });
    for (const link of there) tell(link);
  });
}

/** All interfaces, as a change would tell of them. */
function allLinks(): LinkChange[] {
  const found: LinkChange[] = [];
  netlinkDump(RTM_GETLINK, IFINFOMSG, (view, message) => {
    const link = parseLink(view, message);
    if (link !== undefined) found.push(link);
  });
  return found;
}

function parseLink(view: DataView, { type, at, end }: NetlinkMessage): LinkChange | undefined {
  // Of another family: it became, or ceased to be, a port of a bridge.
  if ((type !== RTM_NEWLINK && type !== RTM_DELLINK) || view.getUint8(at) !== 0) return undefined;
  let mtu = 0;
  for (const a of netlinkAttributes(view, at + IFINFOMSG, end)) {
    if (a.type === IFLA_MTU) mtu = view.getUint32(a.at, true);
  }
  const up = IFF_UP | IFF_RUNNING;
  const running = (view.getUint32(at + 8, true) & up) === up;
  return { ifindex: view.getInt32(at + 4, true), gone: type === RTM_DELLINK, running, mtu };
}
