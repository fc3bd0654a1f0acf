/** Names of ports on command lines: one that is none is refused before a daemon is asked (exit status 2). */
import { parsePortName } from '../ports/names.ts';
import { UsageError } from './errors.ts';

/** @param text a port's name, or "ptnet:0", a machine's own port @returns it @throws PortNameError */
export function portName(text: string): string {
  if (!/^ptnet:\d+$/.test(text)) parsePortName(text);
  return text;
}

/** A port of a switch, and its region (-m). @param option for the error, e.g. "-a" @throws PortNameError, UsageError */
export function switchPort(option: string, text: string, memId?: string): string {
  const { kind, memId: region } = parsePortName(memId === undefined ? text : `${text}@${memId}`);
  if (kind !== 'vale') throw new UsageError(`${option} ${text}: must be valeSSS:INTERFACE`);
  if (memId !== undefined) checkRegion(memId, region);
  return text;
}

/** The interface that a persistent port is, e.g. "v0", and its region (-m). @throws PortNameError, UsageError */
export function interfaceName(option: string, text: string, memId?: string): string {
  const {
    kind,
    name,
    memId: region,
  } = parsePortName(memId === undefined ? `netmap:${text}` : `netmap:${text}@${memId}`);
  if (kind !== 'netmap' || name !== `netmap:${text}`)
    throw new UsageError(`${option} ${text}: must be the name of an interface`);
  if (memId !== undefined) checkRegion(memId, region);
  return text;
}

/** @param parsed what a port's name has as region with it */
function checkRegion(memId: string, parsed: string | undefined): void {
  if (parsed !== memId) throw new UsageError(`-m ${memId}: must be the name of a region`);
}
