/**
 * Domains: switches, pipes and the place of null ports, each on one datapath thread. Control thread; every change waits
 * until the datapath has acknowledged it.
 */
import { DOMAIN_NIC, DOMAIN_NULL, DOMAIN_PIPE, DOMAIN_VALE, domain as domainLayout } from '../abi/index.ts';
import { pageRound } from '../memory/index.ts';
import { errno, SysError } from '../os/index.ts';
import type { Port } from './port-table.ts';
import type { Datapath, Threads } from './threads.ts';

export type DomainKind = 'vale' | 'pipe' | 'null' | 'nic';

const KINDS: Readonly<Record<DomainKind, number>> = {
  vale: DOMAIN_VALE,
  pipe: DOMAIN_PIPE,
  null: DOMAIN_NULL,
  nic: DOMAIN_NIC,
};

export interface Domain {
  /** Of the switch ("vale0"), the pipe ("netmap:x{1") or the interface's port ("netmap:eth0"). */
  readonly name: string;
  readonly kind: DomainKind;
  readonly address: number;
  readonly datapath: Datapath;
  readonly ports: Set<Port>;
  /** What the trap said that stopped it (R2). */
  error: string | undefined;
}

export class Domains {
  readonly #threads: Threads;
  readonly #domains = new Map<string, Domain>();

  constructor(threads: Threads) {
    this.#threads = threads;
  }

  get all(): Iterable<Domain> {
    return this.#domains.values();
  }

  at(thread: number, address: number): Domain | undefined {
    return [...this.#domains.values()].find((d) => d.datapath.index === thread && d.address === address);
  }

  /** The domain of that name, if there is one. @throws SysError EIO: a fault stopped it */
  find(name: string): Domain | undefined {
    const known = this.#domains.get(name);
    if (known?.error === undefined) return known;
    throw new SysError(`${name} was stopped by a fault (${known.error})`, errno.EIO);
  }

  /** The domain of that name, made if it is not there, on `on` or the thread with the fewest. @throws SysError */
  async get(name: string, kind: DomainKind, on?: Datapath): Promise<Domain> {
    const known = this.find(name);
    if (known !== undefined) {
      if (known.kind === kind) return known;
      throw new SysError(`${name}: monitors wait for a port of another kind (${known.kind}) there`, errno.EEXIST);
    }
    const load = (d: Datapath): number => [...this.#domains.values()].filter((x) => x.datapath === d).length;
    const datapath = on ?? this.#threads.datapaths.reduce((best, d) => (load(d) < load(best) ? d : best));
    const bytes = pageRound(domainLayout.size);
    const address = datapath.space.alloc(bytes);
    datapath.arena.mapAnonymous(address, bytes);
    await datapath.mailbox.call({ op: 'domain-add', domain: address, kind: KINDS[kind] });
    const domain: Domain = { name, kind, address, datapath, ports: new Set(), error: undefined };
    this.#domains.set(name, domain);
    return domain;
  }

  /** Removes a domain without ports. */
  async drop(domain: Domain): Promise<void> {
    if (domain.ports.size > 0 || this.#domains.get(domain.name) !== domain) return;
    this.#domains.delete(domain.name);
    await domain.datapath.mailbox.call({ op: 'domain-remove', domain: domain.address });
    domain.datapath.space.free(domain.address);
  }
}
