/**
 * In which region an open lies, and whether its owner may use that (R21; docs/memory.md): what the name says, or where the
 * port is already. Control thread.
 */
import { errno, PAGE_SIZE, SysError } from '../os/index.ts';
import type { PortName } from '../ports/index.ts';
import { isMonitor, isZeroCopyMonitor } from './monitors.ts';
import { ownerText } from './opens.ts';
import type { Port, PortTable } from './port-table.ts';
import { isOwn, isOwner, mayHaveHugePages, type PortOwner, type Regions, type SharedRegion } from './regions.ts';

/** What an owner may use of others', and what he asked for. */
export interface RegionRights {
  /** Bytes of a buffer, if somebody asked for that; regions that exist have to have them. */
  readonly bufSize?: number | undefined;
  /** Whether this owner may use the region of an @ID that others made. */
  readonly mayUse: (id: string) => boolean;
  /** Whether this owner may see what passes through a port of others. @param name the monitor's, e.g. "vale0:a/r" */
  readonly mayMonitor: (name: string) => boolean;
}

export class RegionChoice {
  readonly #regions: Regions;
  readonly #ports: PortTable;

  constructor(regions: Regions, ports: PortTable) {
    this.#regions = regions;
    this.#ports = ports;
  }

  /** The @ID of the region that a port is in or will be in; undefined if that has none, or is one of its own. */
  idOf(name: PortName): string | undefined {
    const there = isMonitor(name) && !isZeroCopyMonitor(name) ? undefined : this.#ports.find(name.name)?.region.id;
    return there ?? (name.share === undefined ? name.memId : this.#ports.find(name.share)?.region.id);
  }

  /**
   * The region that a name or an existing port says; undefined for one of its own.
   * @throws SysError EPERM: it is not this owner's to use; EINVAL: the port lies in another one; EBUSY: nobody can open it
   */
  of(name: PortName, owner: PortOwner, rights: RegionRights): SharedRegion | undefined {
    if (isMonitor(name)) return this.#ofMonitor(name, owner, rights);
    const existing = this.#ports.find(name.name);
    if (existing !== undefined) {
      const { region } = existing;
      if (existing.nic?.hosted === true) {
        const why = `${existing.name} is an interface in a switch, whose rings the switch uses itself`;
        throw new SysError(
          `open ${name.text}: ${why}; monitors show it (${existing.name}/r, ${existing.name}/t)`,
          errno.EBUSY,
        );
      }
      if (name.memId !== undefined && region.id !== name.memId) {
        throw new SysError(
          `open ${name.text}: the port exists in another region (${region.region.name})`,
          errno.EINVAL,
        );
      }
      return this.#usable(name, region, owner, rights);
    }
    return this.#said(name, owner, rights);
  }

  /** The region that a name says: @ID, @share=PORT. */
  #said(name: PortName, owner: PortOwner, rights: RegionRights): SharedRegion | undefined {
    if (name.share !== undefined) {
      const other = this.#ports.find(name.share);
      if (other === undefined) throw new SysError(`open ${name.text}: there is no port ${name.share}`, errno.ENOENT);
      return this.#usable(name, other.region, owner, rights);
    }
    if (name.memId === undefined) return undefined;
    return this.#usable(name, this.#regions.named(name.memId, owner), owner, rights);
  }

  /** A zero-copy monitor lies where its port does, others where they like. A VM's monitor may wait for its port. */
  #ofMonitor(name: PortName, owner: PortOwner, rights: RegionRights): SharedRegion | undefined {
    const port = this.#ports.find(name.name);
    if (port === undefined && !('vm' in owner)) {
      throw new SysError(`open ${name.text}: there is no port ${name.name} to be monitored`, errno.ENOENT);
    }
    if (port !== undefined && !isOwner(port.owner, owner) && !rights.mayMonitor(name.text)) {
      throw new SysError(
        `open ${name.text}: ${port.name} is that of ${ownerText(port.owner)}; let the user open "${name.text}" in the configuration`,
        errno.EPERM,
      );
    }
    if (isZeroCopyMonitor(name)) {
      if (port === undefined) {
        if (name.memId !== undefined) return this.#said(name, owner, rights);
        const why = `a zero-copy monitor lies in the region of ${name.name}, which is not there yet`;
        throw new SysError(`open ${name.text}: ${why}; say which region that will be (${name.text}@ID)`, errno.ENOENT);
      }
      if (port.region.id === undefined) {
        const why = `a zero-copy monitor lies in the region of ${port.name}, which has room for nothing else`;
        throw new SysError(`open ${name.text}: ${why}; ${roomAdvice(port)}`, errno.ENOMEM);
      }
      return this.#usable(name, port.region, owner, rights);
    }
    return this.#said(name, owner, rights);
  }

  #usable(name: PortName, region: SharedRegion, owner: PortOwner, rights: RegionRights): SharedRegion {
    const { id } = region;
    if (region.region.layout.pageBytes > PAGE_SIZE && !mayHaveHugePages(owner)) {
      throw new SysError(
        `open ${name.text}: its memory lies on huge pages (region ${region.region.name}), which only VMs, root and the daemon's user get`,
        errno.EPERM,
      );
    }
    if (isOwn(region, owner) || (id !== undefined && rights.mayUse(id))) {
      const { objsz } = region.region.layout.bufPool;
      if (rights.bufSize === undefined || rights.bufSize === objsz) return region;
      const has = `region ${region.region.name} has buffers of ${objsz} bytes`;
      throw new SysError(`open ${name.text}: bufSize ${rights.bufSize}, but ${has}`, errno.EINVAL);
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
}

/** How a port comes to lie in a region that has room for others. */
function roomAdvice({ name, persistent, nic }: Port): string {
  if (persistent !== undefined) return `make the port with a region that has (ptnet vale-ctl -n ${persistent} -m ID)`;
  if (nic?.hosted === true) return `attach the interface with a region that has (-m ID of ptnet vale-ctl -a and -h)`;
  return `open the port with a region that has (${name}@ID)`;
}
