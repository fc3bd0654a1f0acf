/** What `ptnet list` shows: read from the switchboard and, without any lock, from the datapath's counters. */
import type { DaemonStatus, PortStatus, RegionStatus, RingStatus, Views, VmStatus } from '../abi/index.ts';
import { kring } from '../abi/index.ts';
import type { Region } from '../memory/index.ts';
import type { RegisteredRing } from '../ports/index.ts';
import type { Domain, Port, Switchboard } from './switchboard.ts';

const DROPS = Object.keys(kring.fields).filter((name) => name.startsWith('drop_')) as (keyof typeof kring.get)[];

function ringStatus(m: Views, ring: RegisteredRing): RingStatus {
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

function portStatus(port: Port): PortStatus {
  const { registration, domain, region, state } = port;
  const { m } = domain.datapath.arena;
  return {
    name: port.name,
    owner: port.owner,
    mac: registration.mac.map((b) => b.toString(16).padStart(2, '0')).join(':'),
    region: region.name,
    ...state,
    txRings: registration.txRings.map((ring) => ringStatus(m, ring)),
    rxRings: registration.rxRings.map((ring) => ringStatus(m, ring)),
  };
}

function domainStatus(domain: Domain): DaemonStatus['domains'][number] {
  return {
    name: domain.name,
    kind: 'vale',
    thread: domain.datapath.index,
    running: domain.error === undefined,
    ...(domain.error === undefined ? {} : { error: domain.error }),
    ports: [...domain.ports].map(portStatus),
  };
}

const regionStatus = (region: Region): RegionStatus => ({
  name: region.name,
  memId: region.memId,
  bytes: region.layout.size,
  buffers: region.layout.bufPool.objnum,
  freeBuffers: region.free.buffers,
});

/** The status of a daemon. */
export function daemonStatus(
  switchboard: Switchboard,
  daemon: { version: string; runDir: string; vms: readonly VmStatus[] },
): DaemonStatus {
  return {
    pid: process.pid,
    version: daemon.version,
    uptimeSeconds: Math.round(process.uptime()),
    runDir: daemon.runDir,
    domains: [...switchboard.domains].map(domainStatus),
    regions: [...switchboard.regions].map(regionStatus),
    vms: daemon.vms,
  };
}
