/** The words of ifconfig(8) that `ptnet up` and `ptnet ifconfig` take, and what they do to an interface. */
import { isIPv4, isIPv6 } from 'node:net';
import {
  addInterfaceInet6,
  IFF_PROMISC,
  IFF_UP,
  setInterfaceEther,
  setInterfaceFeature,
  setInterfaceFlags,
  setInterfaceInet,
  setInterfaceMtu,
} from '../os/index.ts';
import { MTU_MAX, MTU_MIN, parseEther } from '../api/index.ts';
import { UsageError } from './errors.ts';
import { inet6Groups } from './inet6.ts';

export interface InterfaceWords {
  inet?: { readonly address: Uint8Array; readonly prefix: number };
  inet6: { readonly address: Uint8Array; readonly prefix: number }[];
  mtu?: number;
  ether?: Uint8Array;
  up?: boolean;
  promisc?: boolean;
  txcsum?: boolean;
  rxcsum?: boolean;
  tso?: boolean;
  lro?: boolean;
}

const flags = ['txcsum', 'rxcsum', 'tso', 'lro', 'promisc'] as const;

/** @throws UsageError */
export function parseWords(words: readonly string[]): InterfaceWords {
  const out: InterfaceWords = { inet6: [] };
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    const flag = flags.find((f) => word === f || word === `-${f}`);
    const value = (): string => {
      const next = words[++i];
      if (next === undefined) throw new UsageError(`"${word}" needs a value`);
      return next;
    };
    if (flag !== undefined) out[flag] = !word.startsWith('-');
    else if (word === 'up' || word === 'down') out.up = word === 'up';
    else if (word === 'inet') out.inet = parseAddress(value(), 4);
    else if (word === 'inet6') out.inet6.push(parseAddress(value(), 6));
    else if (word === 'mtu') out.mtu = parseMtu(value());
    else if (word === 'ether') out.ether = usage(() => parseEther(words[++i] ?? ''));
    else {
      throw new UsageError(
        `"${word}" is unknown; possible: inet A.B.C.D/N, inet6 A::B/N, mtu N, ether MAC, up, down, ` +
          'and with or without "-" in front: txcsum, rxcsum, tso, lro, promisc',
      );
    }
  }
  return out;
}

function usage<T>(action: () => T): T {
  try {
    return action();
  } catch (e) {
    throw e instanceof RangeError ? new UsageError(e.message) : e;
  }
}

function parseMtu(text: string): number {
  const mtu = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (mtu >= MTU_MIN && mtu <= MTU_MAX) return mtu;
  throw new UsageError(`mtu ${text}: a whole number from ${MTU_MIN} to ${MTU_MAX} is wanted`);
}

/** "10.0.0.1/24", "fd00::1/64" as bytes and the length of the prefix (default: the whole address). */
export function parseAddress(text: string, family: 4 | 6): { address: Uint8Array; prefix: number } {
  const [address = '', length] = text.split('/');
  const bits = family === 4 ? 32 : 128;
  const prefix = length === undefined ? bits : /^\d+$/.test(length) ? Number(length) : -1;
  const known = family === 4 ? isIPv4(address) : isIPv6(address);
  if (!known || address.includes('%') || prefix < 0 || prefix > bits) {
    const example = family === 4 ? 'inet 10.0.0.1/24' : 'inet6 fd00::1/64';
    throw new UsageError(`"${text}" is no IPv${family} address with a prefix length, as in: ${example}`);
  }
  if (family === 4) return { address: Uint8Array.from(address.split('.'), Number), prefix };
  return { address: Uint8Array.from(inet6Groups(address).flatMap((group) => [group >> 8, group & 255])), prefix };
}

/** Does what the words say to an interface, in an order that works. @throws SysError */
export function applyWords(name: string, words: InterfaceWords): void {
  if (words.up === false) setInterfaceFlags(name, IFF_UP, false);
  if (words.ether !== undefined) setInterfaceEther(name, words.ether);
  if (words.mtu !== undefined) setInterfaceMtu(name, words.mtu);
  if (words.txcsum !== undefined) setInterfaceFeature(name, 'txcsum', words.txcsum);
  if (words.tso !== undefined) setInterfaceFeature(name, 'tso', words.tso);
  if (words.promisc !== undefined) setInterfaceFlags(name, IFF_PROMISC, words.promisc);
  if (words.up === true) setInterfaceFlags(name, IFF_UP, true);
  if (words.inet !== undefined) setInterfaceInet(name, words.inet.address, words.inet.prefix);
  for (const { address, prefix } of words.inet6) addInterfaceInet6(name, address, prefix);
}
