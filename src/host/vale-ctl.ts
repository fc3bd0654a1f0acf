/**
 * vale-ctl's operations: persistent ports, their attachment to switches, and what there is (vale-ctl(4), netmap_bdg.c).
 * Control thread; called by the switchboard, one after another.
 */
import type { PortInfo, ValePort } from '../abi/index.ts';
import { errno, SysError } from '../os/index.ts';
import type { PortConfig, ValeName } from '../ports/index.ts';
import { parsePortName, portNeeds } from '../ports/index.ts';
import type { Domains } from './domains.ts';
import { nicRings } from './nics.ts';
import type { Port, PortTable } from './port-table.ts';
import type { PortOwner, Regions, RegionSizes, SharedRegion } from './regions.ts';

/** What a region is to be that is made for one port. */
type OwnRegion = Pick<RegionSizes, 'bufSize' | 'hugePages'>;

/** How a network card is attached. */
export interface NicAttach {
  readonly owner: PortOwner;
  /** Slots of its port's rings. */
  readonly config: PortConfig;
  /** Of the region that is made for it if memId is undefined. */
  readonly own: OwnRegion;
  /** -m: the region of this name. */
  readonly memId: string | undefined;
  /** -h: the host's stack too. */
  readonly host: boolean;
}

export class ValeCtl {
  readonly #domains: Domains;
  readonly #regions: Regions;
  readonly #ports: PortTable;

  constructor(domains: Domains, regions: Regions, ports: PortTable) {
    this.#domains = domains;
    this.#regions = regions;
    this.#ports = ports;
  }

  /** -n: makes a persistent port. @param own of the region that is made for it if memId is undefined @throws SysError EEXIST, RegionFullError, ArenaFullError */
  async newIf(
    iface: string,
    config: PortConfig,
    own: OwnRegion,
    memId: string | undefined,
    owner: PortOwner,
  ): Promise<PortInfo> {
    const name = `netmap:${iface}`;
    const parsed = parsePortName(name);
    if (parsed.kind !== 'netmap' || parsed.name !== name) {
      throw new SysError(`-n ${iface}: not the name of an interface`, errno.EINVAL);
    }
    if (this.#ports.find(name) !== undefined) throw new SysError(`-n ${iface}: it exists already`, errno.EEXIST);
    const make = (region: SharedRegion): Promise<Port> => this.#ports.createPersistent(iface, config, region, owner);
    return portInfo(await this.#inRegion(iface, memId, config, own, owner, make));
  }

  /** Makes a port in the region of an @ID, or in one of its own. */
  async #inRegion(
    iface: string,
    memId: string | undefined,
    config: PortConfig,
    own: OwnRegion,
    owner: PortOwner,
    make: (region: SharedRegion) => Promise<Port>,
  ): Promise<Port> {
    if (memId !== undefined && parsePortName(`vale:x@${memId}`).memId !== memId) {
      throw new SysError(`-m ${memId}: not the name of a region`, errno.EINVAL);
    }
    const needs = portNeeds(config);
    const region =
      memId === undefined
        ? this.#regions.create(iface, { interfaces: needs.rings, ...needs, ...own }, owner)
        : this.#regions.named(memId, owner);
    try {
      return await make(region);
    } catch (e) {
      this.#regions.closeUnused();
      throw e;
    }
  }

  /** -r: removes a persistent port. @throws SysError EBUSY: it is attached or open */
  async delIf(iface: string): Promise<void> {
    const port = this.#persistent(iface, `-r ${iface}`);
    if (isAttached(port)) throw new SysError(`-r ${iface}: it is attached as ${port.name}: -d that first`, errno.EBUSY);
    if (port.opens.size > 0) throw new SysError(`-r ${iface}: it is open`, errno.EBUSY);
    await this.#ports.removePersistent(port);
  }

  /** -a valeSSS:IF, -h: returns the port's index. @throws SysError */
  async attach(text: string, nic: NicAttach): Promise<number> {
    const name = parsePortName(text);
    if (name.kind !== 'vale' || name.text !== name.name)
      throw new SysError(`-a ${text}: valeSSS:INTERFACE is wanted`, errno.EINVAL);
    if (this.#ports.find(`netmap:${name.port}`)?.persistent === undefined) return this.#attachNic(name, nic);
    const port = this.#persistent(name.port, `-a ${text}`);
    if (nic.memId !== undefined && nic.memId !== port.region.id) {
      throw new SysError(
        `-a ${text} -m ${nic.memId}: it has its memory already (${port.region.region.name})`,
        errno.EINVAL,
      );
    }
    if (isAttached(port)) throw new SysError(`-a ${text}: it is attached already, as ${port.name}`, errno.EBUSY);
    if (this.#ports.find(name.name) !== undefined) {
      throw new SysError(`-a ${text}: the switch has another port of that name`, errno.EEXIST);
    }
    await this.#ports.move(port, name.name, name.bridge);
    return port.number;
  }

  /** A network card, and the host's stack behind it, as ports of a switch. */
  async #attachNic(name: ValeName, nic: NicAttach): Promise<number> {
    const { owner, config: asked, own, memId, host } = nic;
    const what = `-${host ? 'h' : 'a'} ${name.text}`;
    if (this.#ports.find(name.name) !== undefined) {
      throw new SysError(`${what}: the switch has a port of that name already`, errno.EEXIST);
    }
    const make = (iface: string): Promise<Port> => {
      const rings = nicRings(iface);
      const config = { ...asked, txRings: rings, rxRings: rings };
      return this.#inRegion(iface, memId, config, own, owner, (region) =>
        this.#ports.createHosted(iface, name.bridge, host, config, region, owner),
      );
    };
    const port = await make(name.port);
    if (!host || port.nic?.nic.mode === 'tap') return port.number;
    try {
      await make(`${name.port}^`);
    } catch (e) {
      await this.#ports.removePersistent(port);
      throw e;
    }
    return port.number;
  }

  /** -d valeSSS:IF: returns the port's index. @throws SysError */
  async detach(text: string): Promise<number> {
    const port = this.#ports.find(text);
    if (port === undefined) throw new SysError(`-d ${text}: there is no such port`, errno.ENOENT);
    if (port.nic?.hosted === true) {
      const host = this.#ports.find(`${text}^`);
      if (host !== undefined) await this.#ports.removePersistent(host);
      await this.#ports.removePersistent(port);
      return port.number;
    }
    if (port.persistent === undefined) {
      throw new SysError(`-d ${text}: it is a port of those who have it open, and goes with them`, errno.EINVAL);
    }
    if (!isAttached(port)) throw new SysError(`-d ${text}: it is attached to no switch`, errno.EINVAL);
    const { number } = port;
    await this.#ports.move(port, `netmap:${port.persistent}`, `netmap:${port.persistent}`);
    return number;
  }

  /** -l: all ports of switches, or one. @throws SysError ENOENT */
  list(text?: string): ValePort[] {
    const switches = [...this.#domains.all].filter((d) => d.kind === 'vale' && d.name.startsWith('vale'));
    const all = switches.flatMap((d, bridgeIdx) =>
      [...d.ports]
        .filter((p) => p.monitor === undefined)
        .map(({ name, number }) => ({ name, bridgeIdx, portIdx: number })),
    );
    if (text === undefined) return all;
    const found = all.filter((p) => p.name === text);
    if (found.length === 0) throw new SysError(`-l ${text}: there is no such port`, errno.ENOENT);
    return found;
  }

  /** -g. @throws SysError ENXIO */
  info(text: string): PortInfo {
    const port = this.#ports.find(text) ?? this.#ports.find(`netmap:${text}`);
    if (port === undefined) throw new SysError(`-g ${text}: there is no such port`, errno.ENXIO);
    return portInfo(port);
  }

  #persistent(iface: string, what: string): Port {
    const port = this.#ports.find(`netmap:${iface}`);
    if (port?.persistent !== undefined) return port;
    throw new SysError(`${what}: there is no interface ${iface}: "ptnet vale-ctl -n ${iface}" makes one`, errno.ENXIO);
  }
}

const isAttached = (port: Port): boolean => port.name !== `netmap:${port.persistent ?? ''}`;

function portInfo({ region, config }: Port): PortInfo {
  const { txSlots, rxSlots, txRings, rxRings } = config;
  return { memsize: region.region.layout.size, txSlots, rxSlots, txRings, rxRings, memId: region.region.memId };
}
