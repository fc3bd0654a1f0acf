/**
 * The ports by name: made when they are first opened or by vale-ctl, in a region and in a domain, and released when nobody
 * uses them any more. Control thread.
 */
import { createHash } from 'node:crypto';
import { MONITOR_COPY, MONITOR_ZCOPY } from '../abi/index.ts';
import { errno, SysError } from '../os/index.ts';
import type { PortConfig, PortMemory, PortName, PortRecord } from '../ports/index.ts';
import { allRings, createPipe, createPort, releasePorts, swapped } from '../ports/index.ts';
import type { Domain, DomainKind, Domains } from './domains.ts';
import { isZeroCopyMonitor, monitorLinks } from './monitors.ts';
import type { NicPort } from './nic-queues.ts';
import { connectNic } from './nic-queues.ts';
import type { NicOffloads } from './nic-offloads.ts';
import type { NicWatch } from './nic-watch.ts';
import { openNic, sameRings } from './nics.ts';
import type { Open } from './opens.ts';
import type { PortOwner, Regions, SharedRegion } from './regions.ts';
import type { Threads } from './threads.ts';

export interface Port {
  /** "vale0:a", "netmap:x{1"; that of a persistent port changes as it is attached and detached. */
  name: string;
  readonly kind: DomainKind | 'monitor';
  /** Who made it. */
  readonly owner: PortOwner;
  mac: readonly number[];
  readonly region: SharedRegion;
  readonly config: PortConfig;
  domain: Domain;
  /** Number in the domain. */
  number: number;
  memory: PortMemory;
  record: PortRecord;
  readonly opens: Set<Open>;
  /** The other end of a pipe. */
  peer: Port | undefined;
  /** Ports that show what passes through this one. */
  readonly monitors: Set<Port>;
  /** What a monitor is a monitor of: a name, and while there is such a port, that one. */
  readonly monitor: { readonly of: PortName; port: Port | undefined } | undefined;
  /** Made by vale-ctl -n: its interface name. It stays without users. */
  readonly persistent: string | undefined;
  /** The interface whose port it is. */
  nic: NicPort | undefined;
}

/** A locally administered address, the same for the same owner and port at every start. */
function macOf(owner: PortOwner, port: string): number[] {
  const who = 'vm' in owner ? `vm ${owner.vm}` : `process ${owner.pid}`;
  const hash = createHash('sha256').update(`${who} ${port}`).digest();
  return [0x02, ...hash.subarray(0, 5)];
}

export class PortTable {
  readonly #domains: Domains;
  readonly #regions: Regions;
  readonly #ports = new Map<string, Port>();
  readonly #orphaned: (monitor: Port) => Promise<void>;
  readonly #watch: NicWatch;
  readonly #mayCutOff: (iface: string) => boolean;
  readonly #offloads: NicOffloads;
  readonly #devices: Threads['devices'];
  #monitorsMade = 0;

  /**
   * @param orphaned a monitor's port is gone: it will not see anything any more
   * @param watch follows the interfaces that are ports
   * @param mayCutOff whether an interface of the host's default route may be taken
   * @param offloads switches those of interfaces off
   * @param devices the devices thread
   */
  constructor(
    domains: Domains,
    regions: Regions,
    orphaned: (monitor: Port) => Promise<void>,
    watch: NicWatch,
    mayCutOff: (iface: string) => boolean,
    offloads: NicOffloads,
    devices: Threads['devices'],
  ) {
    this.#domains = domains;
    this.#regions = regions;
    this.#orphaned = orphaned;
    this.#watch = watch;
    this.#mayCutOff = mayCutOff;
    this.#offloads = offloads;
    this.#devices = devices;
  }

  get all(): Iterable<Port> {
    return this.#ports.values();
  }

  /** A port by its name; a persistent one also by "netmap:IF" while it is attached. */
  find(name: string): Port | undefined {
    return this.#ports.get(name) ?? [...this.#ports.values()].find((p) => persistentName(p) === name);
  }

  /**
   * Makes the port of a name, both ends if it is a pipe's. @param config as seen by the end that is named
   * @throws SysError, RegionFullError, ArenaFullError; nothing is kept then
   */
  async create(name: PortName, config: PortConfig, region: SharedRegion, owner: PortOwner): Promise<Port> {
    switch (name.kind) {
      case 'vale':
      case 'null': {
        const domain = await this.#domains.get(...domainOf(name));
        return this.#make(domain, region, [name.name], config, owner);
      }
      case 'pipe': {
        const domain = await this.#domains.get(...domainOf(name));
        const ends = [`${name.base}{${name.id}`, `${name.base}}${name.id}`];
        return this.#make(domain, region, name.end === 'slave' ? ends.toReversed() : ends, config, owner);
      }
      case 'netmap':
        return this.#createNic(name.port, name.name, name.name, config, region, owner);
    }
  }

  /**
   * Makes the port of an interface in a switch, where the datapath is its user.
   * @param withHost the host's stack goes to the switch too, so that it is not cut off @throws as `create`
   */
  createHosted(
    iface: string,
    bridge: string,
    withHost: boolean,
    config: PortConfig,
    region: SharedRegion,
    owner: PortOwner,
  ): Promise<Port> {
    return this.#createNic(iface, `${bridge}:${iface}`, bridge, config, region, owner, withHost);
  }

  async #createNic(
    iface: string,
    name: string,
    domainName: string,
    config: PortConfig,
    region: SharedRegion,
    owner: PortOwner,
    withHost = false,
  ): Promise<Port> {
    const hosted = domainName !== name;
    const taken = [...this.#ports.values()].find(
      ({ nic }) => nic?.state.gone === false && sameRings(nic.nic.name, iface),
    );
    if (taken !== undefined) throw new SysError(`interface ${iface} is a port already: ${taken.name}`, errno.EBUSY);
    const { layout } = region.region;
    const bufSize = layout.bufPool.objsz;
    const mayCutOff = withHost || this.#mayCutOff(iface);
    const nic = openNic(iface, { bufSize, mayCutOff, offloads: this.#offloads });
    let port: Port | undefined;
    try {
      const domain = await this.#domains.get(domainName, hosted ? 'vale' : 'nic');
      port = await this.#make(domain, region, [name], config, owner);
      port.mac = nic.mac;
      const { datapath } = domain;
      port.nic = await connectNic(datapath, this.#devices, domain.address, port.record, nic, hosted, layout.pageBytes);
      this.#watch.add(port.nic);
      return port;
    } catch (e) {
      if (port === undefined) nic.close();
      else await this.#remove([port]);
      throw e;
    }
  }

  /** Makes a persistent port, on no switch yet. @throws as `create` */
  async createPersistent(iface: string, config: PortConfig, region: SharedRegion, owner: PortOwner): Promise<Port> {
    const name = `netmap:${iface}`;
    const domain = await this.#domains.get(name, 'vale');
    return this.#make(domain, region, [name], config, owner, iface);
  }

  /** One port, or the two ends of a pipe; returns the first. */
  async #make(
    domain: Domain,
    region: SharedRegion,
    names: readonly string[],
    shape: PortConfig,
    owner: PortOwner,
    persistent?: string,
  ): Promise<Port> {
    const { space } = domain.datapath;
    const [first, second] = names as [string, string?];
    let memory: PortMemory | undefined;
    const attached: PortRecord[] = [];
    try {
      memory =
        second === undefined
          ? createPort(space, region.region, first, shape)
          : createPipe(space, region.region, [first, second], shape);
      const made: Port[] = [];
      for (const [i, record] of memory.ports.entries()) {
        const number = await this.#attach(domain, record);
        attached.push(record);
        const { name } = record;
        const mac = macOf(owner, name);
        const { kind } = domain;
        const config = i === 0 ? shape : swapped(shape);
        const opens = new Set<Open>();
        const own = { name, kind, owner, mac, region, config, domain, number, memory, record, opens, persistent };
        const watched = { monitors: new Set<Port>(), monitor: undefined };
        made.push({ ...own, ...watched, peer: undefined, nic: undefined });
      }
      if (made[1] !== undefined) {
        made[0]!.peer = made[1];
        made[1].peer = made[0];
      }
      for (const port of made) {
        domain.ports.add(port);
        this.#ports.set(port.name, port);
        this.#regions.use(region);
      }
      for (const port of made) await this.#showToWaiting(port);
      return made[0]!;
    } catch (e) {
      for (const record of attached) await this.#detach(domain, { record, monitor: undefined });
      if (memory !== undefined) releasePorts(space, region.region, memory);
      await this.#domains.drop(domain);
      throw e;
    }
  }

  /**
   * Makes a monitor, with rings of the shape that `monitorConfig` says: of a port that is there, in its domain, or of one
   * that is not there yet, in the domain in which it will be.
   * @param region with zero copy that of the port @throws as `create`; ENOSPC: too many monitors
   */
  async createMonitor(name: PortName, config: PortConfig, region: SharedRegion, owner: PortOwner): Promise<Port> {
    const port = this.find(name.name);
    const domain = port?.domain ?? (await this.#domains.get(...domainOf(name)));
    const { space, mailbox } = domain.datapath;
    const title = `${name.text.replace(/@.*/, '')}#${++this.#monitorsMade}`;
    let memory: PortMemory | undefined;
    try {
      memory = createPort(space, region.region, title, config);
      const kind = isZeroCopyMonitor(name) ? MONITOR_ZCOPY : MONITOR_COPY;
      const command = { op: 'monitor-attach', domain: domain.address, port: memory.ports[0]!.port, kind } as const;
      const result = await mailbox.call(command);
      if (result < 0) {
        throw new SysError(`open ${name.text}: ${domain.name} has as many monitors as it can have`, -result);
      }
    } catch (e) {
      if (memory !== undefined) releasePorts(space, region.region, memory);
      await this.#domains.drop(domain);
      throw e;
    }
    const made: Port = {
      name: title,
      kind: 'monitor',
      owner,
      mac: macOf(owner, title),
      region,
      config,
      domain,
      number: -1,
      memory,
      record: memory.ports[0]!,
      opens: new Set(),
      peer: undefined,
      monitors: new Set(),
      monitor: { of: name, port: undefined },
      persistent: undefined,
      nic: undefined,
    };
    domain.ports.add(made);
    this.#ports.set(title, made);
    this.#regions.use(region);
    if (port !== undefined) await this.#show(port, made);
    return made;
  }

  /** Shows a port to the monitors of its name that have none: those of VMs, which wait for it. */
  async #showToWaiting(port: Port): Promise<void> {
    for (const made of this.#ports.values()) {
      if (made.monitor === undefined || made.monitor.port !== undefined || !('vm' in made.owner)) continue;
      if (made.monitor.of.name === port.name && made.domain === port.domain) await this.#show(port, made);
    }
  }

  async #show(port: Port, made: Port): Promise<void> {
    const { of } = made.monitor!;
    if (isZeroCopyMonitor(of) && made.region !== port.region) return;
    const links = monitorLinks(of, made.record, port.record);
    const { address, datapath } = port.domain;
    await datapath.mailbox.call({ op: 'monitor-link', domain: address, links });
    made.monitor!.port = port;
    port.monitors.add(made);
  }

  /** Releases a port, and the other end if it is a pipe's, unless it is in use. */
  async dropUnused(port: Port): Promise<void> {
    const ends = port.peer === undefined ? [port] : [port, port.peer];
    if (port.persistent !== undefined || port.nic?.hosted === true || ends.some((p) => p.opens.size > 0)) return;
    await this.#remove(ends);
  }

  /** Releases a persistent port that nobody has open, or an interface's in a switch. */
  async removePersistent(port: Port): Promise<void> {
    await this.#remove([port]);
  }

  /** Frees the name of a port, which goes on until its last user closes it. */
  forget(port: Port): void {
    if (this.#ports.get(port.name) === port) this.#ports.delete(port.name);
  }

  /** Ends what monitors see of a port that goes on without anything to see: its interface is gone. */
  async endMonitors(port: Port): Promise<void> {
    const { address, datapath } = port.domain;
    await datapath.mailbox.call({ op: 'monitor-forget', domain: address, port: port.record.port });
    await this.#orphan(port);
  }

  async #orphan(port: Port): Promise<void> {
    for (const monitor of port.monitors) {
      monitor.monitor!.port = undefined;
      await this.#orphaned(monitor);
    }
    port.monitors.clear();
  }

  async #remove(ends: readonly Port[]): Promise<void> {
    const { domain, memory, region } = ends[0]!;
    for (const port of ends) {
      this.forget(port);
      domain.ports.delete(port);
      if (port.nic !== undefined) this.#watch.remove(port.nic);
      await port.nic?.close();
      await this.#detach(domain, port);
      port.monitor?.port?.monitors.delete(port);
      await this.#orphan(port);
    }
    releasePorts(domain.datapath.space, region.region, memory);
    for (const _ of ends) this.#regions.leave(region);
    await this.#domains.drop(domain);
  }

  /**
   * Takes a persistent port from its domain to a switch, or off it. Its rings go on running.
   * @throws SysError EBUSY: it is open, and the switch lives on another thread
   */
  async move(port: Port, name: string, domainName: string): Promise<void> {
    const from = port.domain;
    const to = await this.#domains.get(domainName, 'vale', this.#domains.find(domainName)?.datapath ?? from.datapath);
    try {
      if (to.datapath === from.datapath) {
        const { address } = to;
        const command = { op: 'port-move', from: from.address, to: address, port: port.record.port } as const;
        port.number = checkAttached(await to.datapath.mailbox.call(command), port.name, to);
      } else {
        await this.#moveMemory(port, to);
      }
    } catch (e) {
      await this.#domains.drop(to);
      throw e;
    }
    for (const moved of [port, ...port.monitors]) {
      from.ports.delete(moved);
      to.ports.add(moved);
      moved.domain = to;
    }
    this.#ports.delete(port.name);
    port.name = name;
    this.#ports.set(name, port);
    await this.#domains.drop(from);
    await this.#showToWaiting(port);
  }

  /** To another thread: the port is made anew in its arena. */
  async #moveMemory(port: Port, to: Domain): Promise<void> {
    if (port.opens.size > 0 || port.monitors.size > 0) {
      const where = `${to.name} is served by another datapath thread (${to.datapath.index})`;
      throw new SysError(`${port.name} is open, and ${where}: close it, move it, and open it again`, errno.EBUSY);
    }
    const { domain: from } = port;
    await this.#detach(from, port);
    // Who lists the domain's ports meanwhile must not read counters that are mapped no more (R2).
    from.ports.delete(port);
    releasePorts(from.datapath.space, port.region.region, port.memory);
    try {
      await this.#remake(port, to);
    } catch (e) {
      await this.#remake(port, from);
      from.ports.add(port);
      throw e;
    }
  }

  async #remake(port: Port, domain: Domain): Promise<void> {
    const { space } = domain.datapath;
    const memory = createPort(space, port.region.region, port.name, port.config);
    const record = memory.ports[0]!;
    try {
      port.number = await this.#attach(domain, record);
    } catch (e) {
      releasePorts(space, port.region.region, memory);
      throw e;
    }
    port.memory = memory;
    port.record = record;
  }

  async #attach(domain: Domain, record: PortRecord): Promise<number> {
    const command = { op: 'port-attach', domain: domain.address, port: record.port } as const;
    return checkAttached(await domain.datapath.mailbox.call(command), record.name, domain);
  }

  async #detach(domain: Domain, { record, monitor }: Pick<Port, 'record' | 'monitor'>): Promise<void> {
    const op = monitor === undefined ? 'port-detach' : 'monitor-detach';
    await domain.datapath.mailbox.call({ op, domain: domain.address, port: record.port });
  }
}

/** "netmap:IF" of a persistent port. */
const persistentName = ({ persistent }: Port): string | undefined =>
  persistent === undefined ? undefined : `netmap:${persistent}`;

/** Name and kind of the domain of a port that is not there yet. */
function domainOf(name: PortName): [string, DomainKind] {
  if (name.kind === 'vale') return [name.bridge, 'vale'];
  if (name.kind === 'pipe') return [name.pipe, 'pipe'];
  return name.kind === 'null' ? ['null', 'null'] : [name.name, 'nic'];
}

function checkAttached(result: number, port: string, domain: Domain): number {
  if (result >= 0) return result;
  const full = `attach ${port} to ${domain.name}: all ${domain.ports.size} ports that a switch can have are taken`;
  throw new SysError(full, -result);
}

/** Rings of a port that are part of one of its opens, as kring addresses. */
export function ringsInUse(port: Port): Map<number, Open> {
  return new Map([...port.opens].flatMap((open) => allRings(open.registration).map((ring) => [ring.kring, open])));
}
