/**
 * Who has rings in a region and may have moved their buffers about: the client of a device, or the datapath, which uses the
 * rings of an interface's port in a switch itself. When he is gone, what he left is put right (R19; rebuild.ts).
 * Owner: the devices thread; the rings belong to the datapath, asked through `SlotControl`.
 */
import type { Views } from '../abi/index.ts';
import type { Holdings, PortRing } from '../ports/index.ts';
import { allRings } from '../ports/index.ts';
import { rebuildRings, type RegionNeighbour } from './rebuild.ts';

/** What is asked of the datapath thread; each promise settles when it has taken effect there (R18). */
export interface SlotControl {
  /** Before the slots of stopped rings are rewritten: the other end of a pipe leaves them alone until `reset`. */
  freeze(krings: readonly number[]): Promise<void>;
  reset(krings: readonly number[]): Promise<void>;
  /** Of each ring the buffers that it holds, all at the same moment, between two turns. */
  held(rings: readonly PortRing[]): Promise<readonly (readonly number[])[]>;
}

/** Another tenant of the region, and who knows what his rings hold. */
export interface Neighbour extends RegionNeighbour {
  readonly rings: Pick<SlotControl, 'held'>;
}

export interface TenantHooks {
  /** The other tenants of his region (R19). */
  neighbours(own: Tenant): readonly Neighbour[];
  /** Runs a rebuild when those of others that were asked for before are done: each reads what others write. */
  inTurn(rebuild: () => Promise<void>): Promise<void>;
}

export class Tenant {
  readonly holdings: Holdings;
  /** Whether somebody may still look at what the rings hold. */
  present = false;
  /** Views over the arena that the holdings' addresses refer to. */
  readonly #m: Views;
  readonly #rings: SlotControl;
  readonly #hooks: TenantHooks;

  constructor(m: Views, holdings: Holdings, rings: SlotControl, hooks: TenantHooks) {
    this.#m = m;
    this.holdings = holdings;
    this.#rings = rings;
    this.#hooks = hooks;
  }

  /** What R19 needs to know of him when rings of another of the region are rebuilt. */
  get asNeighbour(): Neighbour {
    return { m: this.#m, holdings: this.holdings, live: this.present, rings: this.#rings };
  }

  /** He is gone and looks at nothing any more: his rings, which are stopped, are put right. Nothing if he was not there. */
  async leave(): Promise<void> {
    if (!this.present) return;
    await this.rebuild();
    this.present = false;
  }

  /** New rings and slots from the private record. The rings are stopped. */
  rebuild(): Promise<void> {
    return this.#hooks.inTurn(async () => {
      const krings = allRings(this.holdings).map((ring) => ring.kring);
      await this.#rings.freeze(krings);
      rebuildRings(this.#m, this.holdings, await withHeld(this.#hooks.neighbours(this)));
      await this.#rings.reset(krings);
    });
  }
}

/** Asks each datapath thread once what the rings of live neighbours hold: buffers go from ring to ring there. */
async function withHeld(neighbours: readonly Neighbour[]): Promise<RegionNeighbour[]> {
  const live = neighbours.filter((n) => n.live);
  const held = new Map<Views, Map<number, readonly number[]>>();
  for (const { m, rings } of live) {
    if (held.has(m)) continue;
    const all = live.filter((n) => n.m === m).flatMap((n) => allRings(n.holdings));
    const buffers = await rings.held(all);
    held.set(m, new Map(all.map((ring, i) => [ring.kring, buffers[i]!])));
  }
  return neighbours.map((n) => ({ ...n, ...(n.live && { held: held.get(n.m)! }) }));
}
