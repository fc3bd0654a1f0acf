/**
 * The control half of everything that carries packets: domains and the threads they live on, regions, ports, and the
 * devices that serve registrations of ports. Owned by the control thread, which is the only one to allocate.
 *
 * Changes are made one after another, each awaited, as the datapath has to acknowledge them.
 */
import { closeFd, errno, PAGE_SIZE, SysError } from '../os/index.ts';
import type { PortConfig, PortName } from '../ports/index.ts';
import {
  allRings,
  createRegistration,
  parsePortName,
  pipeNeeds,
  portNeeds,
  releaseRegistration,
  SelectionError,
} from '../ports/index.ts';
import type { Domain } from './domains.ts';
import { Domains } from './domains.ts';
import { freeRings } from './free-rings.ts';
import type { Open } from './opens.ts';
import { ownerText } from './opens.ts';
import { type NicEvents, NicWatch } from './nic-watch.ts';
import { hostRingsName, nicRings } from './nics.ts';
import type { Port } from './port-table.ts';
import { isMonitor, isZeroCopyMonitor, monitorConfig, PortTable } from './port-table.ts';
import type { PortOwner, RegionSizes, SharedRegion } from './regions.ts';
import { isOwn, isOwner, Regions } from './regions.ts';
import type { Threads } from './threads.ts';
import { ValeCtl } from './vale-ctl.ts';

/** A VM's memory may lie on huge pages of this size; its CSB windows are as large (R1). */
const HUGE_PAGE = 2 ** 21;

/** Where a device's clients come from: a socket to listen on, or one end of a connected pair. */
export type Endpoint = { readonly path: string; readonly uids: readonly number[] } | { readonly fd: number };

export interface PortRequest {
  /** The port with everything behind it (docs/names.md). */
  readonly name: string;
  /** The shape, if the port does not exist yet. */
  readonly config: PortConfig;
  /** Buffers besides those of the rings (default 0). */
  readonly extraBufs?: number;
  readonly endpoint: Endpoint;
}

/** What the devices of a group have in common. */
export interface GroupOptions {
  readonly trustUnsealedMemory: boolean;
  /** The client's memory may lie on huge pages. */
  readonly hugePages: boolean;
  readonly vnetHdr: boolean;
  /** Whether the memdev's BAR1 is a 64-bit one. */
  readonly bar64: boolean;
  /** Most DMA_MAPs of each ptnet device. */
  readonly maxDmaMaps: number;
  /** Bytes of a buffer, if somebody asked for that; regions that exist have to have them. */
  readonly bufSize?: number | undefined;
  /** Whether this owner may use the region of an @ID that others made. */
  readonly mayUse: (id: string) => boolean;
  /** Whether this owner may see what passes through a port of others. @param name the monitor's, e.g. "vale0:a/r" */
  readonly mayMonitor: (name: string) => boolean;
}

/** What one VM or one application has: opens of ports, and a memdev for each region they lie in. */
export interface PortGroup {
  readonly memdevs: readonly { readonly device: number; readonly region: SharedRegion }[];
  readonly opens: readonly Open[];
}

export class Switchboard {
  readonly #threads: Threads;
  readonly #domains: Domains;
  readonly #regions: Regions;
  readonly #ports: PortTable;
  readonly #nics: NicWatch;
  readonly #byDevice = new Map<number, Open>();
  readonly #valeCtl: ValeCtl;
  #last: Promise<unknown> = Promise.resolve();
  #nextDevice = 1;

  /**
   * @param sizesOf sizes of the region of an @ID @param log what becomes of interfaces that are ports
   * @param mayCutOff whether an interface of the host's default route may be taken
   */
  constructor(
    threads: Threads,
    sizesOf: (id: string) => RegionSizes,
    log: NicEvents['log'],
    mayCutOff: (iface: string) => boolean,
  ) {
    this.#threads = threads;
    this.#domains = new Domains(threads);
    this.#regions = new Regions(sizesOf);
    this.#nics = new NicWatch({ log, gone: (nic) => void this.#exclusive(() => nic.gone()) });
    const orphaned = (monitor: Port): Promise<void> => this.#orphaned(monitor);
    this.#ports = new PortTable(this.#domains, this.#regions, orphaned, this.#nics, mayCutOff);
    this.#valeCtl = new ValeCtl(this.#domains, this.#regions, this.#ports);
  }

  get domains(): Iterable<Domain> {
    return this.#domains.all;
  }

  get regions(): Iterable<SharedRegion> {
    return this.#regions.all;
  }

  /** What a ptnet device serves. */
  openOf(device: number): Open | undefined {
    return this.#byDevice.get(device);
  }

  domainAt(thread: number, address: number): Domain | undefined {
    return this.#domains.at(thread, address);
  }

  /** Runs one of vale-ctl's operations, when those before it are done. */
  valeCtl<T>(operation: (ctl: ValeCtl) => T | Promise<T>): Promise<T> {
    return this.#exclusive(async () => operation(this.#valeCtl));
  }

  /** The shape that a port gets: that of an interface has as many rings as the interface has queues. @throws SysError */
  shape(name: PortName, config: PortConfig): PortConfig {
    if (name.kind !== 'netmap' || this.#ports.find(name.name) !== undefined) return config;
    const rings = nicRings(name.port);
    return { ...config, txRings: rings, rxRings: rings };
  }

  /**
   * Opens ports, which are made if they do not exist. Takes over the descriptors of endpoints, also when it fails.
   * @param regionName of the region that is made for the ports that lie in no other
   * @param memdevEndpoint endpoint of the memdev of the group's i-th region, in the order of the requests
   * @throws SysError (EBUSY: a ring is in use; …), RegionFullError, ArenaFullError; nothing is kept then
   */
  open(
    owner: PortOwner,
    regionName: string,
    bufSize: number,
    memdevEndpoint: (i: number) => Endpoint,
    asked: readonly PortRequest[],
    options: GroupOptions,
  ): Promise<PortGroup> {
    const unserved = new Set([memdevEndpoint(0), ...asked.map((r) => r.endpoint)]);
    return this.#exclusive(async () => {
      const undo: (() => Promise<void> | void)[] = [];
      const serve = async (id: number, endpoint: Endpoint): Promise<void> => {
        unserved.delete(endpoint);
        await this.#endpoint(id, endpoint);
      };
      try {
        const names = asked.map((r) => hostRingsName(parsePortName(r.name)));
        const requests = asked.map((r, i) => ({ ...r, config: this.shape(names[i]!, r.config) }));
        const regions = this.#regionsFor(owner, regionName, bufSize, requests, names, options);
        const memdevs: { device: number; region: SharedRegion }[] = [];
        for (const region of new Set(regions)) {
          this.#regions.use(region);
          undo.push(() => this.#regions.leave(region));
          const device = await this.#addMemdev(region, options.bar64);
          undo.push(() => this.#removeDevice(device));
          memdevs.push({ device, region });
        }
        const opens: Open[] = [];
        for (const [i, request] of requests.entries()) {
          const open = await this.#open(owner, names[i]!, regions[i]!, request, options);
          opens.push(open);
          undo.push(() => this.#close(open));
        }
        for (const [i, { device }] of memdevs.entries()) await serve(device, memdevEndpoint(i));
        for (const [i, open] of opens.entries()) await serve(open.device, requests[i]!.endpoint);
        return { memdevs, opens };
      } catch (e) {
        for (const endpoint of unserved) if ('fd' in endpoint) closeFd(endpoint.fd);
        for (const action of undo.toReversed()) await action();
        this.#regions.closeUnused();
        throw e instanceof SelectionError ? new SysError(`open: ${e.message}`, errno.EINVAL) : e;
      }
    });
  }

  /** Removes what `open` made: clients are disconnected, rings stopped, memory given back. */
  close(group: PortGroup): Promise<void> {
    return this.#exclusive(async () => {
      for (const open of group.opens) await this.#close(open);
      for (const { device, region } of group.memdevs) {
        await this.#removeDevice(device);
        this.#regions.leave(region);
      }
    });
  }

  #exclusive<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#last.then(action, action);
    this.#last = result.catch(() => {});
    return result;
  }

  /** The region of each request; those that have none get one together, of the size they need. */
  #regionsFor(
    owner: PortOwner,
    regionName: string,
    bufSize: number,
    requests: readonly PortRequest[],
    names: readonly PortName[],
    options: GroupOptions,
  ): SharedRegion[] {
    const found = names.map((name) => {
      return isMonitor(name) ? this.#regionOfMonitor(name, owner, options) : this.#regionOf(name, owner, options);
    });
    let largest = bufSize;
    const needs = new Map<string, { rings: number; slots: number; buffers: number }>();
    for (const [i, name] of names.entries()) {
      if (found[i] !== undefined) continue;
      const { config } = requests[i]!;
      if (isMonitor(name)) {
        const port = this.#monitored(name);
        needs.set(`monitor ${i}`, portNeeds(monitorConfig(name, port.config)));
        // A copy monitor's buffers hold all of what the port's hold.
        largest = Math.max(largest, port.record.bufSize);
      } else if (name.kind === 'pipe') needs.set(name.pipe, pipeNeeds(config));
      else needs.set(name.name, portNeeds(config));
    }
    if (needs.size === 0) return found as SharedRegion[];
    const all = [...needs.values()];
    const sum = (f: (n: (typeof all)[number]) => number): number => all.reduce((s, n) => s + f(n), 0);
    const own = this.#regions.create(
      regionName,
      {
        // Each ring, and so each end of a pipe, may be opened on its own.
        interfaces: sum((n) => n.rings),
        rings: sum((n) => n.rings),
        slots: Math.max(...all.map((n) => n.slots)),
        buffers:
          sum((n) => n.buffers) + requests.reduce((s, { extraBufs = 0 }, i) => (found[i] ? s : s + extraBufs), 0),
        bufSize: largest,
      },
      owner,
    );
    return found.map((region) => region ?? own);
  }

  /**
   * The region that a name or an existing port says; undefined for one of its own.
   * @throws SysError EPERM: it is not this owner's to use; EINVAL: the port lies in another one
   */
  #regionOf(name: PortName, owner: PortOwner, options: GroupOptions): SharedRegion | undefined {
    const existing = this.#ports.find(name.name);
    if (existing !== undefined) {
      const { region } = existing;
      if (name.memId !== undefined && region.id !== name.memId) {
        throw new SysError(
          `open ${name.text}: the port exists in another region (${region.region.name})`,
          errno.EINVAL,
        );
      }
      return this.#usable(name, region, owner, options);
    }
    if (name.share !== undefined) {
      const other = this.#ports.find(name.share);
      if (other === undefined) throw new SysError(`open ${name.text}: there is no port ${name.share}`, errno.ENOENT);
      return this.#usable(name, other.region, owner, options);
    }
    if (name.memId === undefined) return undefined;
    const region = this.#regions.named(name.memId, owner);
    return this.#usable(name, region, owner, options);
  }

  /** The port that a monitor's name says. @throws SysError ENOENT */
  #monitored(name: PortName): Port {
    const port = this.#ports.find(name.name);
    if (port !== undefined) return port;
    throw new SysError(`open ${name.text}: there is no port ${name.name} to be monitored`, errno.ENOENT);
  }

  /** A zero-copy monitor lies where its port does, others where they like. */
  #regionOfMonitor(name: PortName, owner: PortOwner, options: GroupOptions): SharedRegion | undefined {
    const port = this.#monitored(name);
    if (!isOwner(port.owner, owner) && !options.mayMonitor(name.text)) {
      throw new SysError(
        `open ${name.text}: ${port.name} is that of ${ownerText(port.owner)}; let the user open "${name.text}" in the configuration`,
        errno.EPERM,
      );
    }
    if (isZeroCopyMonitor(name)) {
      if (port.region.id === undefined) {
        const why = `a zero-copy monitor lies in the region of ${port.name}, which has room for nothing else`;
        throw new SysError(
          `open ${name.text}: ${why}; open the port with a region that has (${port.name}@ID)`,
          errno.ENOMEM,
        );
      }
      return this.#usable(name, port.region, owner, options);
    }
    if (name.share !== undefined) {
      const other = this.#ports.find(name.share);
      if (other === undefined) throw new SysError(`open ${name.text}: there is no port ${name.share}`, errno.ENOENT);
      return this.#usable(name, other.region, owner, options);
    }
    if (name.memId === undefined) return undefined;
    return this.#usable(name, this.#regions.named(name.memId, owner), owner, options);
  }

  /** A monitor whose port is gone: a process hears of it by losing its device; a VM's device stays, and stays silent. */
  async #orphaned(monitor: Port): Promise<void> {
    for (const { device, owner } of monitor.opens) {
      if ('vm' in owner) continue;
      await this.#threads.devices.call({ op: 'disconnect', id: device, reason: 'the monitored port is gone' });
    }
  }

  #usable(name: PortName, region: SharedRegion, owner: PortOwner, options: GroupOptions): SharedRegion {
    const { id } = region;
    if (isOwn(region, owner) || (id !== undefined && options.mayUse(id))) {
      const { objsz } = region.region.layout.bufPool;
      if (options.bufSize === undefined || options.bufSize === objsz) return region;
      const has = `region ${region.region.name} has buffers of ${objsz} bytes`;
      throw new SysError(`open ${name.text}: bufSize ${options.bufSize}, but ${has}`, errno.EINVAL);
    }
    const advice =
      id === undefined
        ? `name a region for it that both may use (${name.name}@ID) when it is first opened`
        : `let the user open "@${id}" in the configuration`;
    throw new SysError(
      `open ${name.text}: its memory is that of ${ownerText(region.owner)} (region ${region.region.name}); ${advice}`,
      errno.EPERM,
    );
  }

  async #addMemdev({ region }: SharedRegion, bar64: boolean): Promise<number> {
    const device = this.#nextDevice++;
    const { memId, fd, layout, name } = region;
    const memdev = { memId, fd, layout, bar64 };
    await this.#threads.devices.call({ op: 'memdev-add', id: device, name: `${name} memdev`, memdev });
    return device;
  }

  async #open(
    owner: PortOwner,
    name: PortName,
    region: SharedRegion,
    request: PortRequest,
    options: GroupOptions,
  ): Promise<Open> {
    const port = await this.#portOf(name, request.config, region, owner);
    const { space, index } = port.domain.datapath;
    const undo: (() => Promise<void> | void)[] = [() => this.#ports.dropUnused(port)];
    try {
      const rings = port.monitor === undefined ? freeRings(port, name) : port.record;
      const whole = allRings(rings).length === allRings(port.record).length;
      // The header's length is the port's: who has only some of its rings has no say in it.
      const vnetHdr = options.vnetHdr && port.kind === 'vale' && whole;
      const csbWindow = options.hugePages ? HUGE_PAGE : PAGE_SIZE;
      const identity = { mac: port.mac, vnetHdr };
      const registration = createRegistration(
        space,
        region.region,
        port.record,
        rings,
        identity,
        csbWindow,
        request.extraBufs,
      );
      undo.push(() => releaseRegistration(space, region.region, registration));
      const device = this.#nextDevice++;
      const { trustUnsealedMemory, maxDmaMaps } = options;
      const ptnet = { registration, trustUnsealedMemory, maxDmaMaps };
      await this.#threads.devices.call({ op: 'ptnet-add', id: device, name: name.name, thread: index, ptnet });
      const state = { attached: false, running: false, vnetHdrLen: 0 };
      const open: Open = { name: name.text, port, owner, registration, device, state };
      port.opens.add(open);
      this.#byDevice.set(device, open);
      return open;
    } catch (e) {
      for (const action of undo.toReversed()) await action();
      throw e;
    }
  }

  #portOf(name: PortName, config: PortConfig, region: SharedRegion, owner: PortOwner): Promise<Port> | Port {
    if (isMonitor(name)) return this.#ports.createMonitor(name, this.#monitored(name), region, owner);
    return this.#ports.find(name.name) ?? this.#ports.create(name, config, region, owner);
  }

  async #close(open: Open): Promise<void> {
    const { port, registration, device } = open;
    await this.#removeDevice(device);
    this.#byDevice.delete(device);
    port.opens.delete(open);
    releaseRegistration(port.domain.datapath.space, port.region.region, registration);
    await this.#ports.dropUnused(port);
  }

  async #endpoint(id: number, endpoint: Endpoint): Promise<void> {
    if ('fd' in endpoint) await this.#threads.devices.call({ op: 'serve', id, fd: endpoint.fd });
    else await this.#threads.devices.call({ op: 'listen', id, ...endpoint });
  }

  async #removeDevice(id: number): Promise<void> {
    await this.#threads.devices.call({ op: 'remove', id });
  }
}
