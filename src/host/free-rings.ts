/** Which rings of a port an open gets: those that its name selects, if nobody has one of them. */
import { NR_EXCLUSIVE } from '../abi/index.ts';
import { errno, SysError } from '../os/index.ts';
import type { PortName, SelectedRings } from '../ports/index.ts';
import { allRings, parsePortName, selectRings } from '../ports/index.ts';
import { checkWholeQueues } from './nics.ts';
import { ownerText } from './opens.ts';
import type { Port } from './port-table.ts';
import { ringsInUse } from './port-table.ts';

/** The rings of a port that a name selects. @throws SysError EBUSY: one is in use; SelectionError */
export function freeRings(port: Port, name: PortName): SelectedRings {
  if (port.kind === 'nic') checkWholeQueues(name);
  const rings = selectRings(port.record, name);
  const used = ringsInUse(port);
  for (const ring of allRings(rings)) {
    const open = used.get(ring.kring);
    if (open === undefined) continue;
    throw new SysError(`open ${name.text}: ${ownerText(open.owner)} has it or some of these rings open`, errno.EBUSY);
  }
  const exclusive = [...port.opens].find((open) => isExclusive(parsePortName(open.name)));
  const first = exclusive ?? (isExclusive(name) ? [...port.opens][0] : undefined);
  if (first !== undefined) {
    const why =
      exclusive === undefined ? 'is open, so that it cannot be had exclusively (/x)' : 'is open exclusively (/x)';
    throw new SysError(`open ${name.text}: ${port.name} ${why} by ${ownerText(first.owner)}`, errno.EBUSY);
  }
  return rings;
}

const isExclusive = (name: PortName): boolean => (name.flags & NR_EXCLUSIVE) !== 0;
