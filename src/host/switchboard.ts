/**
 * The control half of everything that carries packets: switches (domains) and the threads they live on, regions, ports,
 * and the devices that serve ports. Owned by the control thread, which is the only one to allocate.
 */
import { createHash } from 'node:crypto';
import { DOMAIN_VALE, domain as domainLayout } from '../abi/index.ts';
import type { PtnetState } from '../device/index.ts';
import { pageRound, Region } from '../memory/index.ts';
import { closeFd, errno, PAGE_SIZE, SysError } from '../os/index.ts';
import type { PortConfig, Registration } from '../ports/index.ts';
import { createRegistration, parsePortName, portNeeds, releaseRegistration } from '../ports/index.ts';
import type { Datapath, Threads } from './threads.ts';

/** A VM's memory may lie on huge pages of this size; its CSB windows are as large (R1). */
const HUGE_PAGE = 2 ** 21;

export type PortOwner = { readonly vm: string } | { readonly pid: number; readonly uid: number };

export interface Domain {
  readonly name: string;
  readonly address: number;
  readonly datapath: Datapath;
  readonly ports: Set<Port>;
  /** What the trap said that stopped it (R2). */
  error: string | undefined;
}

export interface Port {
  readonly name: string;
  readonly owner: PortOwner;
  readonly domain: Domain;
  readonly region: Region;
  readonly registration: Registration;
  /** Identifier of the ptnet device in the devices thread. */
  readonly device: number;
  state: PtnetState;
}

/** Where a device's clients come from: a socket to listen on, or one end of a connected pair. */
export type Endpoint = { readonly path: string; readonly uids: readonly number[] } | { readonly fd: number };

export interface PortRequest {
  readonly name: string;
  readonly config: PortConfig;
  readonly endpoint: Endpoint;
}

/** What the devices of a region have in common. */
export interface GroupOptions {
  readonly trustUnsealedMemory: boolean;
  /** The client's memory may lie on huge pages. */
  readonly hugePages: boolean;
  readonly vnetHdr: boolean;
  /** Whether the memdev's BAR1 is a 64-bit one. */
  readonly bar64: boolean;
  /** Most DMA_MAPs of each ptnet device. */
  readonly maxDmaMaps: number;
}

/** A region, its memdev, and the ports in it: what one VM or one application has. */
export interface PortGroup {
  readonly region: Region;
  readonly memdev: number;
  readonly ports: readonly Port[];
}

export class Switchboard {
  readonly #threads: Threads;
  readonly #domains = new Map<string, Domain>();
  readonly #ports = new Map<string, Port>();
  readonly #byDevice = new Map<number, Port>();
  readonly #regions = new Map<number, Region>();
  /** Changes to switches are made one after another: each waits for the datapath. */
  #last: Promise<unknown> = Promise.resolve();
  #nextDevice = 1;

  constructor(threads: Threads) {
    this.#threads = threads;
  }

  get domains(): Iterable<Domain> {
    return this.#domains.values();
  }

  get regions(): Iterable<Region> {
    return this.#regions.values();
  }

  /** The port that a ptnet device serves. */
  portOf(device: number): Port | undefined {
    return this.#byDevice.get(device);
  }

  domainAt(thread: number, address: number): Domain | undefined {
    return [...this.#domains.values()].find((d) => d.datapath.index === thread && d.address === address);
  }

  /**
   * Makes a region with ports and their devices. Takes over the descriptors of endpoints, also when it fails.
   * @throws SysError (EEXIST: a port of that name exists; …), RegionFullError, ArenaFullError; nothing is kept then
   */
  open(
    owner: PortOwner,
    regionName: string,
    bufSize: number,
    memdevEndpoint: Endpoint,
    requests: readonly PortRequest[],
    options: GroupOptions,
  ): Promise<PortGroup> {
    const unserved = new Set([memdevEndpoint, ...requests.map((r) => r.endpoint)]);
    return this.#exclusive(async () => {
      const undo: (() => Promise<void> | void)[] = [];
      const serve = async (id: number, endpoint: Endpoint): Promise<void> => {
        unserved.delete(endpoint);
        await this.#endpoint(id, endpoint);
      };
      try {
        const needs = requests.map((r) => portNeeds(r.config));
        const sum = (f: (n: (typeof needs)[number]) => number): number => needs.reduce((s, n) => s + f(n), 0);
        const region = new Region(
          {
            name: regionName,
            interfaces: requests.length,
            rings: sum((n) => n.rings),
            slots: Math.max(...needs.map((n) => n.slots)),
            buffers: sum((n) => n.buffers),
            bufSize,
          },
          this.#freeMemId(),
        );
        this.#regions.set(region.memId, region);
        undo.push(() => this.#closeRegion(region));
        const { fd, layout, memId } = region;
        const memdev = this.#nextDevice++;
        const name = `${regionName} memdev`;
        await this.#threads.devices.call({
          op: 'memdev-add',
          id: memdev,
          name,
          memdev: { memId, fd, layout, bar64: options.bar64 },
        });
        undo.push(() => this.#removeDevice(memdev));
        const ports: Port[] = [];
        for (const request of requests) {
          const port = await this.#openPort(owner, region, request, options);
          ports.push(port);
          undo.push(() => this.#closePort(port));
        }
        await serve(memdev, memdevEndpoint);
        for (const [i, port] of ports.entries()) await serve(port.device, requests[i]!.endpoint);
        return { region, memdev, ports };
      } catch (e) {
        for (const endpoint of unserved) if ('fd' in endpoint) closeFd(endpoint.fd);
        for (const action of undo.toReversed()) await action();
        throw e;
      }
    });
  }

  /** Removes what `open` made: clients are disconnected, rings stopped, memory given back. */
  close(group: PortGroup): Promise<void> {
    return this.#exclusive(async () => {
      for (const port of group.ports) await this.#closePort(port);
      await this.#removeDevice(group.memdev);
      this.#closeRegion(group.region);
    });
  }

  #exclusive<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#last.then(action, action);
    this.#last = result.catch(() => {});
    return result;
  }

  async #openPort(owner: PortOwner, region: Region, request: PortRequest, options: GroupOptions): Promise<Port> {
    const { name, config } = request;
    if (this.#ports.has(name)) throw new SysError(`open port ${name}: it exists already`, errno.EEXIST);
    const parsed = parsePortName(name);
    if (parsed.kind !== 'vale') throw new SysError(`open ${name}: only VALE ports are served`, errno.EOPNOTSUPP);
    const domain = await this.#domain(parsed.bridge);
    const { space, mailbox, index } = domain.datapath;
    const undo: (() => Promise<void> | void)[] = [() => this.#dropUnused(domain)];
    try {
      const identity = { name, mac: macOf(owner, name), domain: domain.address, vnetHdr: options.vnetHdr };
      const csbWindow = options.hugePages ? HUGE_PAGE : PAGE_SIZE;
      const registration = createRegistration(space, region, config, identity, csbWindow);
      undo.push(() => releaseRegistration(space, region, registration));
      const number = await mailbox.call({ op: 'port-attach', domain: domain.address, port: registration.port });
      if (number < 0) throw new SysError(`attach ${name} to switch ${domain.name}: no free port`, -number);
      undo.push(async () => void (await this.#detach(domain, registration)));
      const device = this.#nextDevice++;
      const { trustUnsealedMemory, maxDmaMaps } = options;
      const ptnet = { registration, trustUnsealedMemory, maxDmaMaps };
      await this.#threads.devices.call({ op: 'ptnet-add', id: device, name, thread: index, ptnet });
      const state = { attached: false, running: false, vnetHdrLen: 0 };
      const port: Port = { name, owner, domain, region, registration, device, state };
      domain.ports.add(port);
      this.#ports.set(name, port);
      this.#byDevice.set(device, port);
      return port;
    } catch (e) {
      for (const action of undo.toReversed()) await action();
      throw e;
    }
  }

  async #closePort(port: Port): Promise<void> {
    const { domain, registration, region } = port;
    await this.#removeDevice(port.device);
    this.#byDevice.delete(port.device);
    this.#ports.delete(port.name);
    await this.#detach(domain, registration);
    releaseRegistration(domain.datapath.space, region, registration);
    domain.ports.delete(port);
    await this.#dropUnused(domain);
  }

  #detach(domain: Domain, registration: Registration): Promise<number> {
    return domain.datapath.mailbox.call({ op: 'port-detach', domain: domain.address, port: registration.port });
  }

  /** The switch of that name, made if it is not there, on the thread with the fewest. */
  async #domain(name: string): Promise<Domain> {
    const known = this.#domains.get(name);
    if (known !== undefined) {
      if (known.error === undefined) return known;
      throw new SysError(`switch ${name} was stopped by a fault (${known.error})`, errno.EIO);
    }
    const load = (d: Datapath): number => [...this.#domains.values()].filter((x) => x.datapath === d).length;
    const datapath = this.#threads.datapaths.reduce((best, d) => (load(d) < load(best) ? d : best));
    const bytes = pageRound(domainLayout.size);
    const address = datapath.space.alloc(bytes);
    datapath.arena.mapAnonymous(address, bytes);
    await datapath.mailbox.call({ op: 'domain-add', domain: address, kind: DOMAIN_VALE });
    const domain: Domain = { name, address, datapath, ports: new Set(), error: undefined };
    this.#domains.set(name, domain);
    return domain;
  }

  async #dropUnused(domain: Domain): Promise<void> {
    if (domain.ports.size > 0) return;
    this.#domains.delete(domain.name);
    await domain.datapath.mailbox.call({ op: 'domain-remove', domain: domain.address });
    domain.datapath.space.free(domain.address);
  }

  async #endpoint(id: number, endpoint: Endpoint): Promise<void> {
    if ('fd' in endpoint) await this.#threads.devices.call({ op: 'serve', id, fd: endpoint.fd });
    else await this.#threads.devices.call({ op: 'listen', id, ...endpoint });
  }

  async #removeDevice(id: number): Promise<void> {
    await this.#threads.devices.call({ op: 'remove', id });
  }

  #closeRegion(region: Region): void {
    this.#regions.delete(region.memId);
    region.close();
  }

  #freeMemId(): number {
    for (let id = 1; id < 65536; id++) if (!this.#regions.has(id)) return id;
    throw new SysError('open: no free memory identifier', errno.ENOSPC);
  }
}

/** A locally administered address, the same for the same owner and port at every start. */
function macOf(owner: PortOwner, port: string): number[] {
  const who = 'vm' in owner ? `vm ${owner.vm}` : `process ${owner.pid}`;
  const hash = createHash('sha256').update(`${who} ${port}`).digest();
  return [0x02, ...hash.subarray(0, 5)];
}
