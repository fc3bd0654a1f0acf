/**
 * Interfaces of the host as ports: finds out how the frames of an interface can be had, makes what that takes (XDP program
 * and link, packet socket, TAP interface, redirection of the stack's frames), and takes all of it away again. Everything is
 * held by descriptors or recorded (nic-offloads.ts), so whatever way the daemon ends, the interface works for the host
 * again. docs/nics.md
 *
 * Control thread.
 */
import { writeFileSync } from 'node:fs';
import { NR_REG_ALL_NIC, NR_REG_NIC_SW, NR_REG_SW, NR_RX_RINGS_ONLY, NR_TX_RINGS_ONLY } from '../abi/index.ts';
import type { NicLink } from '../kloop/index.ts';
import type { XdpMode } from '../os/index.ts';
import {
  carriesDefaultRoute,
  closeFd,
  dropFromWire,
  errno,
  IFF_UP,
  interfaceDriver,
  interfaceEther,
  interfaceIndex,
  interfaceMtu,
  interfaceQueues,
  openTap,
  packetSocket,
  promiscuous,
  receiveFromWire,
  redirectAll,
  setInterfaceFlags,
  SysError,
  XDP_CHUNK_MAX,
  XDP_CHUNK_MIN,
  XDP_PACKET_HEADROOM,
  xdpChunk,
  xdpAttach,
  xdpToSockets,
  xskMap,
} from '../os/index.ts';
import type { PortName } from '../ports/index.ts';
import { MAX_RINGS_PER_PORT } from '../ports/index.ts';
import { isMonitor } from './monitors.ts';
import type { NicOffloads } from './nic-offloads.ts';

/**
 * How the frames are had: AF_XDP with the program in the driver or in the kernel, packet sockets, a TAP interface; the host's
 * by tc. Of both, it is the wire's.
 */
export type NicMode = XdpMode | 'packet' | 'tap' | 'host';

/** An interface in use by a port. */
export interface Nic {
  /** "eth0"; "eth0^" for the host's stack at that interface, "eth0*" for both. */
  readonly name: string;
  readonly ifindex: number;
  readonly mode: NicMode;
  /** Why it is not a better one. */
  readonly because: string | undefined;
  readonly mac: readonly number[];
  /** Most bytes of a VirtIO network header that its frames can have. */
  readonly vnetHdrLen: number;
  /** Of each pair of rings; undefined: it leads nowhere. */
  readonly links: readonly (NicLink | undefined)[];
  readonly mtu: number;
  close(): void;
}

export interface NicNeeds {
  /** Bytes of a buffer. */
  readonly bufSize: number;
  /** Whether the host's own frames may be taken away, though its default route needs them. */
  readonly mayCutOff: boolean;
  /** Switches offloads off. */
  readonly offloads: NicOffloads;
}

/** The header of TAP interfaces, as long as modern VirtIO has it. */
const VNET_HDR_LEN = 12;
/** Of a TAP interface until it is known what its port's user can do. */
const NO_OFFLOAD = { txcsum: false, tso: false };
/** Ethernet header, two VLAN tags. */
export const FRAME_OVERHEAD = 22;
/** Names of interfaces that are made if they are not there. */
const TAP_NAME = /^tap/;

/** What of an interface a port has: its wire ("eth0"), the host's stack there ("eth0^"), or both ("eth0*"). */
export type NicPart = 'wire' | 'host' | 'both';

export function parseInterface(name: string): { readonly iface: string; readonly part: NicPart } {
  if (name.endsWith('^')) return { iface: name.slice(0, -1), part: 'host' };
  return name.endsWith('*') ? { iface: name.slice(0, -1), part: 'both' } : { iface: name, part: 'wire' };
}

/** Whether two ports of interfaces cannot be there at once, by their interfaces' names. */
export function sameRings(a: string, b: string): boolean {
  const [x, y] = [parseInterface(a), parseInterface(b)];
  return x.iface === y.iface && (x.part === y.part || x.part === 'both' || y.part === 'both');
}

function exists(iface: string): boolean {
  try {
    interfaceIndex(iface);
    return true;
  } catch (e) {
    if (e instanceof SysError && e.errno === errno.ENODEV) return false;
    throw e;
  }
}

/**
 * Rings, each way, that a port of an interface has. @throws SysError ENXIO: there is none of that name; E2BIG: too many
 */
export function nicRings(name: string): number {
  const { iface, part } = parseInterface(name);
  if (!exists(iface)) {
    if (TAP_NAME.test(name) && part === 'wire') return 1;
    const advice = `"ptnet vale-ctl -n ${iface}" makes a persistent VALE port`;
    throw new SysError(`there is no interface ${iface} (${advice} of that name)`, errno.ENXIO);
  }
  if (part === 'host') return 1;
  const queues = interfaceDriver(iface) === 'tun' ? 1 : interfaceQueues(iface);
  const ofHost = part === 'both' ? 1 : 0;
  if (2 * (queues + ofHost) > MAX_RINGS_PER_PORT) {
    const most = Math.floor(MAX_RINGS_PER_PORT / 2) - ofHost;
    const advice = `a port has at most ${most} (ethtool -L ${iface} combined ${most})`;
    throw new SysError(`interface ${iface} has ${queues} receive queues; ${advice}`, errno.E2BIG);
  }
  return queues + ofHost;
}

/** Takes an interface, the host's stack at one, or both, for a port. @throws SysError; nothing is kept then */
export function openNic(name: string, needs: NicNeeds): Nic {
  const { iface, part } = parseInterface(name);
  const undo: (() => void)[] = [];
  try {
    if (part === 'host') return openHost(iface, needs, undo);
    const wire = openWire(iface, needs, undo);
    if (part === 'wire') return wire;
    const queues = nicRings(iface);
    const host = openHost(iface, needs, undo);
    const links = Array.from({ length: queues }, (_, i) => wire.links[i]);
    return { ...wire, name, links: [...links, ...host.links] };
  } catch (e) {
    for (const action of undo.toReversed()) action();
    throw e;
  }
}

function openWire(iface: string, needs: NicNeeds, undo: (() => void)[]): Nic {
  if (!exists(iface) || interfaceDriver(iface) === 'tun') {
    const tap = openTapNic(iface, undo);
    if (tap !== undefined) return tap;
  }
  return openCard(iface, needs, undo);
}

/** Undoes everything, once: a descriptor closed twice may be somebody else's by then. */
const ending = (undo: (() => void)[]) => (): void => {
  for (const action of undo.splice(0).toReversed()) action();
};

/** @throws SysError EPERM: without this interface's frames the host would be cut off, and nobody said that it may be */
function checkDefaultRoute(iface: string, ifindex: number, { mayCutOff }: NicNeeds): void {
  if (mayCutOff) return;
  const route = carriesDefaultRoute(ifindex);
  if (route === undefined) return;
  const through = route === iface ? '' : ` (by way of ${route})`;
  const why = `the host's default route goes through it${through}, and the host would be cut off`;
  throw new SysError(
    `interface ${iface}: ${why}; if it may be, list it under interfaces.mayCutOff in the configuration`,
    errno.EPERM,
  );
}

/** An interface whose frames are those of a wire. */
function openCard(iface: string, needs: NicNeeds, undo: (() => void)[]): Nic {
  const ifindex = interfaceIndex(iface);
  checkDefaultRoute(iface, ifindex, needs);
  const queues = nicRings(iface);
  const mtu = interfaceMtu(iface);
  const promiscuity = promiscuous(ifindex);
  undo.push(() => closeFd(promiscuity));
  undo.push(needs.offloads.switchOff(iface, ifindex, ['lro', 'rxvlan']));
  const common = { name: iface, ifindex, mac: [...interfaceEther(iface)], vnetHdrLen: 0, mtu, close: ending(undo) };
  let because: string;
  try {
    const { map, mode } = attach(ifindex, queues, needs.bufSize, undo);
    // Native programs see frames before they are merged.
    if (mode !== 'native') undo.push(needs.offloads.switchOff(iface, ifindex, ['gro']));
    const links = Array.from({ length: queues }, (_, queue): NicLink => ({ kind: 'xdp', ifindex, queue, map }));
    return { ...common, mode, because: undefined, links };
  } catch (e) {
    if (!(e instanceof SysError)) throw e;
    because = e.message;
  }
  undo.push(needs.offloads.switchOff(iface, ifindex, ['gro']));
  const fd = packetSocket(ifindex);
  undo.push(() => closeFd(fd));
  receiveFromWire(fd);
  try {
    const drop = dropFromWire(ifindex);
    undo.push(() => closeFd(drop));
  } catch (e) {
    if (!(e instanceof SysError)) throw e;
    because += `; the host receives its frames too: ${e.message}`;
  }
  return { ...common, mode: 'packet', because, links: [{ kind: 'packet', fd, longest: mtu + FRAME_OVERHEAD }] };
}

/** Attaches the XDP program. @throws SysError: AF_XDP is not to be had here */
function attach(
  ifindex: number,
  queues: number,
  bufSize: number,
  undo: (() => void)[],
): { map: number; mode: XdpMode } {
  const chunk = xdpChunk(bufSize);
  if (chunk < XDP_CHUNK_MIN || chunk > XDP_CHUNK_MAX) {
    const [least, most] = [XDP_CHUNK_MIN - XDP_PACKET_HEADROOM, XDP_CHUNK_MAX - XDP_PACKET_HEADROOM];
    throw new SysError(`AF_XDP needs buffers of ${least} to ${most} bytes, these have ${bufSize}`, errno.EINVAL);
  }
  const mine: (() => void)[] = [];
  try {
    const map = xskMap(queues);
    mine.push(() => closeFd(map));
    const program = xdpToSockets(map);
    mine.push(() => closeFd(program));
    const { link, mode } = xdpAttach(program, ifindex);
    mine.push(() => closeFd(link));
    undo.push(...mine);
    return { map, mode };
  } catch (e) {
    ending(mine)();
    throw e;
  }
}

/** A TAP interface, made if it is not there; undefined if another process is at its other end. */
function openTapNic(iface: string, undo: (() => void)[]): Nic | undefined {
  let fd: number;
  try {
    fd = openTap(iface, 1, VNET_HDR_LEN, NO_OFFLOAD).fds[0]!;
  } catch (e) {
    if (e instanceof SysError && e.errno === errno.EBUSY) return undefined;
    throw e;
  }
  undo.push(() => closeFd(fd));
  setInterfaceFlags(iface, IFF_UP, true);
  const mtu = interfaceMtu(iface);
  return {
    name: iface,
    ifindex: interfaceIndex(iface),
    mode: 'tap',
    because: undefined,
    mac: macBeyond(iface),
    vnetHdrLen: VNET_HDR_LEN,
    links: [{ kind: 'tap', fd, name: iface, longest: mtu + FRAME_OVERHEAD }],
    mtu,
    close: ending(undo),
  };
}

/** At the other end of a TAP interface's cable: another address than its own. */
function macBeyond(iface: string): number[] {
  const mac = [...interfaceEther(iface)];
  mac[5]! ^= 1;
  return mac;
}

/**
 * The host's stack at an interface: what it sends there goes to a TAP interface of ours instead, and what we write into
 * that one is received at the interface (two tc programs, held by links).
 */
function openHost(iface: string, needs: NicNeeds, undo: (() => void)[]): Nic {
  const ifindex = interfaceIndex(iface);
  checkDefaultRoute(iface, ifindex, needs);
  const helper = `ptnh${ifindex}`;
  const fd = openTap(helper, 1, VNET_HDR_LEN, NO_OFFLOAD).fds[0]!;
  undo.push(() => closeFd(fd));
  // The helper is a pipe: the stack must not send anything of its own there.
  try {
    writeFileSync(`/proc/sys/net/ipv6/conf/${helper}/disable_ipv6`, '1');
  } catch {
    // A kernel without IPv6.
  }
  setInterfaceFlags(helper, IFF_UP, true);
  const beyond = interfaceIndex(helper);
  const back = redirectAll({ ifindex: beyond, at: 'ingress' }, { ifindex, as: 'received' });
  undo.push(() => closeFd(back));
  const out = redirectAll({ ifindex, at: 'egress' }, { ifindex: beyond, as: 'sent' });
  undo.push(() => closeFd(out));
  const mtu = interfaceMtu(iface);
  return {
    name: `${iface}^`,
    ifindex,
    mode: 'host',
    because: undefined,
    mac: [...interfaceEther(iface)],
    vnetHdrLen: VNET_HDR_LEN,
    links: [{ kind: 'tap', fd, name: helper, longest: mtu + FRAME_OVERHEAD }],
    mtu,
    close: ending(undo),
  };
}

/**
 * The port that a name means: "netmap:eth0^" (the host's rings of netmap) and "netmap:eth0*" (those and the card's) are ports
 * of their own here, and so is the "vale0:eth0^" that `vale-ctl -h` makes: nobody opens it, but monitors show it.
 */
export function hostRingsName(name: PortName): PortName {
  const inSwitch = name.kind === 'vale' && name.mode === NR_REG_SW && isMonitor(name);
  const own = name.kind === 'netmap' && (name.mode === NR_REG_SW || name.mode === NR_REG_NIC_SW);
  if (!inSwitch && !own) return name;
  const part = name.mode === NR_REG_SW ? '^' : '*';
  return { ...name, name: `${name.name}${part}`, port: `${name.port}${part}`, mode: NR_REG_ALL_NIC };
}

/** @throws SysError EOPNOTSUPP: only the rings of one direction of an interface are wanted */
export function checkWholeQueues({ text, flags }: PortName): void {
  if ((flags & (NR_RX_RINGS_ONLY | NR_TX_RINGS_ONLY)) === 0) return;
  throw new SysError(`open ${text}: the two rings of an interface's queue go together (no /R, /T)`, errno.EOPNOTSUPP);
}
