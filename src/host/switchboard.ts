/**
 * The control half of everything that carries packets: domains and the threads they live on, regions, ports, and the
 * devices that serve registrations of ports. Owned by the control thread, which is the only one to allocate.
 *
 * Changes are made one after another, each awaited, as the datapath has to acknowledge them.
 */
import { closeFd, errno, HUGE_PAGE, PAGE_SIZE, SysError } from '../os/index.ts';
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
import { isMonitor, monitorConfig } from './monitors.ts';
import type { NicOffloads } from './nic-offloads.ts';
import { type NicEvents, type NicUse, NicWatch } from './nic-watch.ts';
import { checkWholeQueues, hostRingsName, nicRings } from './nics.ts';
import type { Port } from './port-table.ts';
import { PortTable } from './port-table.ts';
import type { PortOwner, RegionSizes, SharedRegion } from './regions.ts';
import { RegionChoice, type RegionRights } from './region-choice.ts';
import { Regions } from './regions.ts';
import type { Threads } from './threads.ts';
import { ValeCtl } from './vale-ctl.ts';

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

/** What an open would take. */
export interface OpenPlan {
  readonly config: PortConfig;
  readonly bufSize: number;
  readonly regionId: string | undefined;
}

/** What the devices of a group have in common. */
export interface GroupOptions extends RegionRights {
  readonly trustUnsealedMemory: boolean;
  /** The client's own memory may lie on huge pages: its CSB windows are as large (R1). */
  readonly clientHugePages: boolean;
  /** A region that is made for the group is to lie on huge pages. */
  readonly hugePages: boolean;
  readonly vnetHdr: boolean;
  /** Whether the memdev's BAR1 is a 64-bit one. */
  readonly bar64: boolean;
  /** Most DMA_MAPs of each ptnet device. */
  readonly maxDmaMaps: number;
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
  readonly #choice: RegionChoice;
  readonly #nics: NicWatch;
  readonly #byDevice = new Map<number, Open>();
  readonly #valeCtl: ValeCtl;
  #last: Promise<unknown> = Promise.resolve();
  #nextDevice = 1;

  /**
   * @param sizesOf sizes of the region of an @ID @param log what becomes of interfaces that are ports, and of regions
   * @param mayCutOff whether an interface of the host's default route may be taken
   * @param offloads switches those of interfaces off
   */
  constructor(
    threads: Threads,
    sizesOf: (id: string) => RegionSizes,
    log: NicEvents['log'],
    mayCutOff: (iface: string) => boolean,
    offloads: NicOffloads,
  ) {
    this.#threads = threads;
    this.#domains = new Domains(threads);
    this.#regions = new Regions(sizesOf, log);
    const gone = (nic: NicUse): void => {
      const failed = (e: Error): void =>
        log('warn', `interface ${nic.nic.name}: its port was not closed: ${e.message}`);
      this.#exclusive(() => this.#nicGone(nic)).catch(failed);
    };
    this.#nics = new NicWatch({ log, gone });
    const orphaned = (monitor: Port): Promise<void> => this.#orphaned(monitor);
    this.#ports = new PortTable(
      this.#domains,
      this.#regions,
      orphaned,
      this.#nics,
      mayCutOff,
      offloads,
      threads.devices,
    );
    this.#choice = new RegionChoice(this.#regions, this.#ports);
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

  /**
   * What an open would take: the shape of the port, the size of its buffers, and the @ID of the region it would lie in, if
   * that has one. @param config, bufSize what was asked for @throws SysError
   */
  plan(name: PortName, config: PortConfig, bufSize: number): OpenPlan {
    return {
      config: this.#shape(name, config),
      bufSize: Math.max(bufSize, this.#ports.find(name.name)?.record.bufSize ?? 0),
      regionId: this.#choice.idOf(name),
    };
  }

  /**
   * The shape that a port gets: that of an interface has as many rings as the interface has queues, that of a monitor is
   * made after the port it shows. @param config what was asked for; of a monitor, the shape its port will have
   */
  #shape(name: PortName, config: PortConfig): PortConfig {
    const existing = this.#ports.find(name.name);
    if (isMonitor(name)) return monitorConfig(name, existing?.config ?? this.#shape({ ...name, flags: 0 }, config));
    if (name.kind !== 'netmap' || existing !== undefined) return config;
    checkWholeQueues(name);
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
        const requests = asked.map((r, i) => ({ ...r, config: this.#shape(names[i]!, r.config) }));
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

  /** Gives the interfaces that are ports back to the host. Only when the datapath threads have ended, or the process is about to. */
  releaseInterfaces(): void {
    for (const { nic } of this.#ports.all) nic?.nic.close();
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
    const found = names.map((name) => this.#choice.of(name, owner, options));
    let largest = bufSize;
    const needs = new Map<string, { rings: number; slots: number; buffers: number }>();
    for (const [i, name] of names.entries()) {
      if (found[i] !== undefined) continue;
      const { config } = requests[i]!;
      if (isMonitor(name)) {
        needs.set(`monitor ${i}`, portNeeds(config));
        // A copy monitor's buffers hold all of what the port's hold.
        largest = Math.max(largest, this.#ports.find(name.name)?.record.bufSize ?? 0);
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
        hugePages: options.hugePages,
      },
      owner,
    );
    return found.map((region) => region ?? own);
  }

  /** A monitor whose port is gone: a process hears of it by losing its device; a VM's waits for another port of that name. */
  #orphaned(monitor: Port): Promise<void> {
    return this.#takeAway(monitor, 'the monitored port is gone');
  }

  /** Processes that have a port open are told why, and lose the device; its rings stay as they are until they close it. */
  async #takeAway(port: Port, reason: string): Promise<void> {
    for (const { device, owner, tellGone } of port.opens) {
      if ('vm' in owner) continue;
      tellGone?.(reason);
      await this.#threads.devices.call({ op: 'disconnect', id: device, reason });
    }
  }

  /**
   * An interface is gone: its port leaves the switch; processes that have it open are told and lose the device; a VM's
   * device stays, and its rings lead nowhere. The port's name is free for an interface that comes back.
   */
  async #nicGone(use: NicUse): Promise<void> {
    const port = [...this.#ports.all].find((p) => p.nic === use);
    if (port === undefined) return;
    if (port.nic?.hosted === true) return this.#ports.removePersistent(port);
    this.#ports.forget(port);
    await use.gone();
    await this.#ports.endMonitors(port);
    await this.#takeAway(port, `interface ${use.nic.name} is gone`);
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
      const possible = port.kind === 'vale' || (port.nic?.nic.vnetHdrLen ?? 0) > 0;
      const vnetHdr = options.vnetHdr && possible && whole;
      const csbWindow = options.clientHugePages ? HUGE_PAGE : PAGE_SIZE;
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
      const open: Open = { name: name.text, port, owner, registration, device, state, changes: 0, tellGone: undefined };
      port.opens.add(open);
      this.#byDevice.set(device, open);
      return open;
    } catch (e) {
      for (const action of undo.toReversed()) await action();
      throw e;
    }
  }

  #portOf(name: PortName, config: PortConfig, region: SharedRegion, owner: PortOwner): Promise<Port> | Port {
    if (isMonitor(name)) return this.#ports.createMonitor(name, config, region, owner);
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
