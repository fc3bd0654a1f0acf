/** Ranges of addresses and ports on pkt-gen's command line: `IP[:PORT[-IP:PORT]]`, IPv6 addresses in brackets or not. */
import { isIPv6 } from 'node:net';
import { UsageError } from '../errors.ts';
import { inet6Groups } from '../inet6.ts';
import type { IpRange } from './frame.ts';

const DEFAULT_PORT = 1234;

/** `ip[:port[-ip:port]]`; the ends may be given in any order. */
export function ipv4Range(option: string, text: string): IpRange {
  const ends = text.split('-').map((end) => {
    const [address = '', port = String(DEFAULT_PORT), more] = end.split(':');
    const bytes = address.split('.').map((b) => (/^\d{1,3}$/.test(b) && Number(b) < 256 ? Number(b) : Number.NaN));
    if (bytes.length !== 4 || bytes.some(Number.isNaN) || !isPort(port) || more !== undefined) {
      throw new UsageError(`${option} ${text}: must be IP[:PORT[-IP:PORT]], e.g. 10.0.0.1:1000-10.0.0.9:2000`);
    }
    return { ip: bytes.reduce((sum, b) => sum * 256 + b, 0), port: end.includes(':') ? Number(port) : undefined };
  });
  const [a, b = a, more] = ends;
  if (a === undefined || b === undefined || more !== undefined) {
    throw new UsageError(`${option} ${text}: must be one address or two with "-" between them`);
  }
  return { ip0: Math.min(a.ip, b.ip), ip1: Math.max(a.ip, b.ip), ...ports(a.port, b.port) };
}

/** The same with IPv6 addresses, which may differ in one 16-bit group; with a port they stand in brackets. */
export function ipv6Range(option: string, text: string): IpRange {
  const ends = text.split('-').map((end) => {
    const [, bracketed, plain, port] = /^(?:\[(.*)\]|([^[\]]*?))(?:(?<=\]):(\d+))?$/.exec(end) ?? [];
    const address = bracketed ?? plain ?? '';
    if (!isIPv6(address) || address.includes('%') || (port !== undefined && !isPort(port))) {
      throw new UsageError(
        `${option} ${text}: must be IPV6 or [IPV6]:PORT[-[IPV6]:PORT], e.g. [fd00::1]:1-[fd00::9]:2`,
      );
    }
    return { groups: inet6Groups(address), port: port === undefined ? undefined : Number(port) };
  });
  const [a, b = a, more] = ends;
  if (a === undefined || b === undefined || more !== undefined) {
    throw new UsageError(`${option} ${text}: must be one address or two with "-" between them`);
  }
  const differ = a.groups.flatMap((value, i) => (value === b.groups[i] ? [] : [i]));
  if (differ.length > 1) throw new UsageError(`${option} ${text}: the two addresses may differ in one group only`);
  const group = differ[0] ?? 7;
  const [from, to] = [a.groups[group]!, b.groups[group]!];
  return { ip0: Math.min(from, to), ip1: Math.max(from, to), base: a.groups, group, ...ports(a.port, b.port) };
}

const isPort = (text: string): boolean => /^\d+$/.test(text) && Number(text) < 65536;

function ports(first: number | undefined, second: number | undefined): { port0: number; port1: number } {
  const a = first ?? DEFAULT_PORT;
  const b = second ?? a;
  return { port0: Math.min(a, b), port1: Math.max(a, b) };
}
