/** What `ptnet list` shows: read from the switchboard and, without any lock, from the datapath's counters. */
import type { ArenaStatus, DaemonStatus, PortStatus, RegionStatus, RingStatus, Views, VmStatus } from '../abi/index.ts';
import { kring, NR_REG_ONE_NIC } from '../abi/index.ts';
import type { PortRing, SelectedRings } from '../ports/index.ts';
import { parsePortName } from '../ports/index.ts';
import type { Domain } from './domains.ts';
import type { Port } from './port-table.ts';
import type { SharedRegion } from './regions.ts';
import type { Switchboard } from './switchboard.ts';
import type { Datapath } from './threads.ts';

const DROPS = Object.keys(kring.fields).filter((name) => name.startsWith('drop_')) as (keyof typeof kring.get)[];

function ringStatus(m: Views, ring: PortRing): RingStatus {
  const read = (name: keyof typeof kring.get): number => Number(kring.get[name](m, ring.kring));
  const drops: Record<string, number> = {};
  for (const name of DROPS) if (read(name) > 0) drops[name.slice('drop_'.length)] = read(name);
  return {
    slots: ring.numSlots,
    packets: read('packets'),
    bytes: read('bytes'),
    drops,
    repairs: read('repairs'),
    signals: read('signals'),
  };
}

const macText = (mac: readonly number[]): string => mac.map((b) => b.toString(16).padStart(2, '0')).join(':');

function interfaceStatus({ nic: use }: Port): Pick<PortStatus, 'interface'> {
  if (use === undefined) return {};
  const { name, mode, because } = use.nic;
  return { interface: { name, mode, ...(because === undefined ? {} : { because }), ...use.zeroCopy(), ...use.state } };
}

/** Each open of a port, or the port itself if there is none. */
function portStatuses(port: Port): PortStatus[] {
  const { m } = port.domain.datapath.arena;
  const status = (rings: SelectedRings): Pick<PortStatus, 'mac' | 'region' | 'interface' | 'txRings' | 'rxRings'> => ({
    mac: macText(port.mac),
    region: port.region.region.name,
    ...interfaceStatus(port),
    txRings: rings.txRings.map((ring) => ringStatus(m, ring)),
    rxRings: rings.rxRings.map((ring) => ringStatus(m, ring)),
  });
  if (port.opens.size > 0) {
    return [...port.opens].map(({ registration, owner, state, name }) => {
      const { mode, ringId } = parsePortName(name);
      const which = mode === NR_REG_ONE_NIC ? `-${ringId}` : '';
      return { name: port.name + which, owner, ...state, ...status(registration) };
    });
  }
  const hosted = port.nic?.hosted === true;
  const idle = { attached: hosted, running: hosted, vnetHdrLen: hosted ? (port.nic?.nic.vnetHdrLen ?? 0) : 0 };
  return [{ name: port.name, owner: { nobody: true }, ...idle, ...status(port.record) }];
}

function domainStatus(domain: Domain): DaemonStatus['domains'][number] {
  return {
    name: domain.name,
    kind: domain.kind,
    thread: domain.datapath.index,
    running: domain.error === undefined,
    ...(domain.error === undefined ? {} : { error: domain.error }),
    ports: [...domain.ports].flatMap(portStatuses),
  };
}

const regionStatus = ({ region }: SharedRegion): RegionStatus => ({
  name: region.name,
  memId: region.memId,
  bytes: region.layout.size,
  pageBytes: region.layout.pageBytes,
  ...(region.because === undefined ? {} : { because: region.because }),
  buffers: region.layout.bufPool.objnum,
  freeBuffers: region.free.buffers,
  rings: region.layout.ringPool.objnum,
  freeRings: region.free.rings,
  freeInterfaces: region.free.interfaces,
});

const arenaStatus = ({ index, space }: Datapath): ArenaStatus => ({
  thread: index,
  freeBytes: space.freeBytes,
  freeRanges: space.freeRanges.map(({ ofs, bytes }) => [ofs, bytes]),
});

/** The status of a daemon. */
export function daemonStatus(
  switchboard: Switchboard,
  daemon: { version: string; runDir: string; vms: readonly VmStatus[]; datapaths: readonly Datapath[] },
): DaemonStatus {
  return {
    pid: process.pid,
    version: daemon.version,
    uptimeSeconds: Math.round(process.uptime()),
    runDir: daemon.runDir,
    domains: [...switchboard.domains].map(domainStatus),
    regions: [...switchboard.regions].map(regionStatus),
    vms: daemon.vms,
    arenas: daemon.datapaths.map(arenaStatus),
  };
}
