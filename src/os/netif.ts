/**
 * Network interfaces of this process's network namespace, by ioctl (netdevice(7), ethtool's ioctl): address, MTU, flags,
 * features. No program of the system is needed.
 */
import { errno, SysError } from './errno.ts';
import { closeFd } from './events.ts';
import { check, lastErrno, libc, scratch } from './libc.ts';

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0x80000;
const SIOCGIFFLAGS = 0x8913;
const SIOCSIFFLAGS = 0x8914;
const SIOCGIFADDR = 0x8915;
const SIOCSIFADDR = 0x8916;
const SIOCGIFNETMASK = 0x891b;
const SIOCSIFNETMASK = 0x891c;
const SIOCGIFMTU = 0x8921;
const SIOCSIFMTU = 0x8922;
const SIOCSIFHWADDR = 0x8924;
const SIOCGIFHWADDR = 0x8927;
const SIOCGIFINDEX = 0x8933;
const SIOCETHTOOL = 0x8946;
const ARPHRD_ETHER = 1;

export const IFF_UP = 0x1;
export const IFF_PROMISC = 0x100;
/** Longest name of an interface, bytes. */
export const IFNAME_MAX = 15;

/** ethtool's commands to read and to set a feature. */
const ETHTOOL = { txcsum: [0x16, 0x17], tso: [0x1e, 0x1f] } as const;

/** Writes the name of a struct ifreq. @throws RangeError */
export function fillName(ifreq: Uint8Array, name: string): void {
  const bytes = new TextEncoder().encode(name);
  if (bytes.length === 0 || bytes.length > IFNAME_MAX || /[/\s:]/.test(name)) {
    throw new RangeError(`"${name}" is no name of an interface: 1 to ${IFNAME_MAX} bytes, without blank, "/" and ":"`);
  }
  ifreq.fill(0);
  ifreq.set(bytes);
}

const ifreq = scratch(40);

/** One ioctl on an interface; its struct ifreq is `ifreq`, filled with the name and by `fill`. */
function request(name: string, code: number, what: string, fill?: () => void, family = AF_INET): void {
  fillName(ifreq.u8, name);
  fill?.();
  const fd = check(libc.socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket');
  try {
    if (libc.ioctl(fd, code, ifreq.address) >= 0) return;
    const e = lastErrno();
    throw new SysError(e === errno.ENODEV ? `there is no interface ${name}` : `interface ${name}: ${what}`, e);
  } finally {
    closeFd(fd);
  }
}

export function interfaceFlags(name: string): number {
  request(name, SIOCGIFFLAGS, 'its flags');
  return ifreq.view.getUint16(16, true);
}

/** Turns flags (IFF_UP, IFF_PROMISC) on or off. */
export function setInterfaceFlags(name: string, flags: number, on: boolean): void {
  const before = interfaceFlags(name);
  const after = on ? before | flags : before & ~flags;
  request(name, SIOCSIFFLAGS, `flags 0x${after.toString(16)}`, () => ifreq.view.setUint16(16, after, true));
}

export function interfaceMtu(name: string): number {
  request(name, SIOCGIFMTU, 'its MTU');
  return ifreq.view.getInt32(16, true);
}

export function setInterfaceMtu(name: string, mtu: number): void {
  request(name, SIOCSIFMTU, `MTU ${mtu}`, () => ifreq.view.setInt32(16, mtu, true));
}

export function interfaceIndex(name: string): number {
  request(name, SIOCGIFINDEX, 'its index');
  return ifreq.view.getInt32(16, true);
}

/** Ethernet address, 6 bytes. */
export function interfaceEther(name: string): Uint8Array {
  request(name, SIOCGIFHWADDR, 'its Ethernet address');
  return ifreq.u8.slice(18, 24);
}

export function setInterfaceEther(name: string, mac: Uint8Array): void {
  request(name, SIOCSIFHWADDR, 'its Ethernet address', () => {
    ifreq.view.setUint16(16, ARPHRD_ETHER, true);
    ifreq.u8.set(mac, 18);
  });
}

/** The IPv4 address and netmask, 4 bytes each, up or down; undefined: it has none. */
export function interfaceInet(name: string): { address: Uint8Array; netmask: Uint8Array } | undefined {
  const get = (code: number, what: string): Uint8Array => {
    request(name, code, what, () => ifreq.view.setUint16(16, AF_INET, true));
    return ifreq.u8.slice(20, 24);
  };
  try {
    return { address: get(SIOCGIFADDR, 'its address'), netmask: get(SIOCGIFNETMASK, 'its netmask') };
  } catch (e) {
    if (e instanceof SysError && e.errno === errno.EADDRNOTAVAIL) return undefined;
    throw e;
  }
}

/** Sets the IPv4 address (4 bytes) and the length of its network's prefix. */
export function setInterfaceInet(name: string, address: Uint8Array, prefix: number): void {
  const sockaddr = (bytes: Uint8Array) => (): void => {
    ifreq.view.setUint16(16, AF_INET, true);
    ifreq.u8.set(bytes, 20);
  };
  const mask = new Uint8Array(4);
  new DataView(mask.buffer).setUint32(0, prefix === 0 ? 0 : (0xffffffff << (32 - prefix)) >>> 0);
  request(name, SIOCSIFADDR, `address ${address.join('.')}`, sockaddr(address));
  request(name, SIOCSIFNETMASK, `netmask ${mask.join('.')}`, sockaddr(mask));
}

/** Adds an IPv6 address (16 bytes) with the length of its network's prefix. */
export function addInterfaceInet6(name: string, address: Uint8Array, prefix: number): void {
  const index = interfaceIndex(name);
  const fd = check(libc.socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket(AF_INET6)');
  try {
    // struct in6_ifreq: address, prefix length, interface index
    const in6 = scratch(24);
    in6.u8.set(address);
    in6.view.setUint32(16, prefix, true);
    in6.view.setInt32(20, index, true);
    check(libc.ioctl(fd, SIOCSIFADDR, in6.address), `interface ${name}: an IPv6 address`);
  } finally {
    closeFd(fd);
  }
}

/** Reads a feature of an interface. */
export function interfaceFeature(name: string, feature: keyof typeof ETHTOOL): boolean {
  return ethtool(name, ETHTOOL[feature][0], 0, `feature ${feature}`) !== 0;
}

/** Turns a feature on or off, as far as the interface's owner allows. */
export function setInterfaceFeature(name: string, feature: keyof typeof ETHTOOL, on: boolean): void {
  ethtool(name, ETHTOOL[feature][1], on ? 1 : 0, `feature ${feature}`);
}

function ethtool(name: string, command: number, data: number, what: string): number {
  const value = scratch(8); // struct ethtool_value
  value.view.setUint32(0, command, true);
  value.view.setUint32(4, data, true);
  request(name, SIOCETHTOOL, what, () => ifreq.view.setBigUint64(16, BigInt(value.address), true));
  return value.view.getUint32(4, true);
}
