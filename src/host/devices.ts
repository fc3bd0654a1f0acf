/**
 * The devices: which exist, who is connected to them, through which sockets; and everybody who has rings in a region. Runs on
 * the devices thread's event loop; the control thread asks for devices to be added and removed and hears what becomes of them.
 */
import type { MemdevConfig, PtnetConfig, PtnetState, RingControl, SlotControl, TenantHooks } from '../device/index.ts';
import { MemdevDevice, PtnetDevice, Tenant } from '../device/index.ts';
import { askHeld, type Command, type Mailbox } from '../kloop/index.ts';
import type { Arena } from '../memory/index.ts';
import { closeFd, listenUnix, peerCredentials } from '../os/index.ts';
import type { PortRecord } from '../ports/index.ts';
import { ServerConnection, socketTransport } from '../vfio-user/index.ts';
import type { Acceptor } from './acceptor.ts';
import { acceptor } from './acceptor.ts';

export type DevicesCommand =
  | { readonly op: 'memdev-add'; readonly id: number; readonly name: string; readonly memdev: MemdevConfig }
  | {
      readonly op: 'ptnet-add';
      readonly id: number;
      readonly name: string;
      /** Index of the datapath thread that serves the port's domain. */
      readonly thread: number;
      readonly ptnet: PtnetConfig;
    }
  /** Opens a socket on which clients of these users may connect, one at a time. */
  | { readonly op: 'listen'; readonly id: number; readonly path: string; readonly uids: readonly number[] }
  /**
   * Serves a connected socket, which becomes the device's. Its client is gone only when the device is removed: until
   * then it may look at its rings, and does not find them rewritten, also if it was disconnected.
   */
  | { readonly op: 'serve'; readonly id: number; readonly fd: number }
  /** Disconnects whoever is connected. */
  | { readonly op: 'disconnect'; readonly id: number; readonly reason: string }
  /** Disconnects whoever is connected and forgets the device. */
  | { readonly op: 'remove'; readonly id: number }
  /** The datapath thread is about to use the rings of a port itself, so that they hold buffers as a client's do (R19). */
  | { readonly op: 'host'; readonly thread: number; readonly record: PortRecord }
  /** It does not any more; nothing if it did not. They are stopped, and put right. */
  | { readonly op: 'unhost'; readonly thread: number; readonly port: number }
  /** Removes all devices. */
  | { readonly op: 'end' };

export type DevicesEvent =
  | { readonly event: 'state'; readonly id: number; readonly state: PtnetState }
  | { readonly event: 'log'; readonly level: 'info' | 'warn' | 'error' | 'debug'; readonly message: string };

/** A datapath thread as the devices see it. */
export interface DatapathThread {
  readonly arena: Arena;
  readonly mailbox: Mailbox<Command>;
}

/** Why a client is disconnected whose device is removed. */
const REMOVED = 'the device was removed';
/** How long a new client waits for one that is leaving. */
const LEAVING_MS = 1000;

/** Whether a promise settles within some time. */
async function settles(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => (timer = setTimeout(resolve, ms, false)));
  const settled = await Promise.race([promise.then(() => true), late]);
  clearTimeout(timer);
  return settled;
}

interface Entry {
  readonly name: string;
  readonly device: MemdevDevice | PtnetDevice;
  connection: ServerConnection | undefined;
  /** Whether a client is served or its end is being dealt with; `free` settles when neither is true any more. */
  busy: boolean;
  free: Promise<void>;
  listener: Acceptor | undefined;
  /** Nobody is served any more. */
  removed: boolean;
}

export class Devices {
  readonly #threads: readonly DatapathThread[];
  readonly #post: (event: DevicesEvent) => void;
  readonly #entries = new Map<number, Entry>();
  /** Datapath threads as users of ports, by thread and port. */
  readonly #hosted = new Map<string, Tenant>();
  /** All clients may look at their rings until they hear that the daemon has ended. */
  #ending = false;
  /** The last rebuild that was asked for. */
  #rebuilt: Promise<void> = Promise.resolve();
  readonly #tenancy: TenantHooks = {
    neighbours: (own) => {
      const { memId } = own.holdings;
      return [...this.#tenants()].filter((t) => t !== own && t.holdings.memId === memId).map((t) => t.asNeighbour);
    },
    inTurn: (rebuild) => (this.#rebuilt = this.#rebuilt.then(rebuild, rebuild)),
  };

  constructor(threads: readonly DatapathThread[], post: (event: DevicesEvent) => void) {
    this.#threads = threads;
    this.#post = post;
  }

  /** Carries out a command of the control thread. */
  async execute(command: DevicesCommand): Promise<void> {
    switch (command.op) {
      case 'memdev-add':
        this.#add(command.id, command.name, new MemdevDevice(command.memdev));
        return;
      case 'ptnet-add':
        this.#add(command.id, command.name, this.#ptnet(command));
        return;
      case 'listen':
        return this.#listen(this.#entry(command.id), command.path, command.uids);
      case 'serve':
        await this.#serve(this.#entry(command.id), command.fd, () => Promise.resolve());
        return;
      case 'disconnect':
        this.#entry(command.id).connection?.close(command.reason);
        return;
      case 'remove':
        return this.#remove(command.id);
      case 'host':
        this.#host(command.thread, command.record);
        return;
      case 'unhost':
        return this.#unhost(`${command.thread} ${command.port}`);
      case 'end':
        this.#ending = true;
        await Promise.all([...this.#entries.keys()].map((id) => this.#remove(id)));
    }
  }

  /** Disconnects the client whose interrupt descriptor a datapath thread hangs on (R15). */
  disconnectOwner(fd: number): void {
    for (const { device, connection } of this.#entries.values()) {
      if (device instanceof PtnetDevice && device.ownsIrq(fd)) {
        connection?.close('its interrupt eventfd is full and blocking: writing it took more than 10 ms (R15)');
      }
    }
  }

  #entry(id: number): Entry {
    const entry = this.#entries.get(id);
    if (entry === undefined) throw new Error(`no device ${id}`);
    return entry;
  }

  #add(id: number, name: string, device: MemdevDevice | PtnetDevice): void {
    this.#entries.set(id, {
      name,
      device,
      connection: undefined,
      busy: false,
      free: Promise.resolve(),
      listener: undefined,
      removed: false,
    });
  }

  #ptnet(command: Extract<DevicesCommand, { op: 'ptnet-add' }>): PtnetDevice {
    const { id, name, ptnet, thread } = command;
    const { registration } = ptnet;
    const { arena, mailbox } = this.#threads[thread]!;
    const { port } = registration;
    const done = (): void => {};
    const rings: RingControl = {
      ...this.#slots(thread),
      start: (started, vnetHdrLen) => mailbox.call({ op: 'start', port, vnetHdrLen, rings: started }),
      stop: (krings) => mailbox.call({ op: 'stop', krings }).then(done),
      setIrqs: (irqs) => mailbox.call({ op: 'irq', irqs }).then(done),
      addKick: (fd) => mailbox.call({ op: 'kick-add', fd }).then(done),
      removeKick: (fd) => mailbox.call({ op: 'kick-remove', fd }).then(done),
    };
    return new PtnetDevice(ptnet, arena, rings, {
      ...this.#tenancy,
      warn: (message) => this.#log('warn', `${name}: ${message}`),
      changed: (state) => this.#post({ event: 'state', id, state }),
    });
  }

  #slots(thread: number): SlotControl {
    const { mailbox } = this.#threads[thread]!;
    const done = (): void => {};
    return {
      freeze: (krings) => mailbox.call({ op: 'freeze', krings }).then(done),
      reset: (krings) => mailbox.call({ op: 'reset', krings }).then(done),
      held: (asked) => askHeld(asked, (asking) => mailbox.call(asking)),
    };
  }

  /** Everybody who has rings in a region. */
  *#tenants(): Generator<Tenant> {
    for (const { device } of this.#entries.values()) if (device instanceof PtnetDevice) yield device.tenant;
    yield* this.#hosted.values();
  }

  #host(thread: number, record: PortRecord): void {
    const { m } = this.#threads[thread]!.arena;
    const tenant = new Tenant(m, record, this.#slots(thread), this.#tenancy);
    tenant.present = true;
    this.#hosted.set(`${thread} ${record.port}`, tenant);
  }

  async #unhost(key: string): Promise<void> {
    const tenant = this.#hosted.get(key);
    if (tenant === undefined) return;
    await this.#putRight(tenant.holdings.name, () => tenant.leave());
    this.#hosted.delete(key);
  }

  #listen(entry: Entry, path: string, uids: readonly number[]): void {
    const fd = listenUnix(path);
    entry.listener = acceptor(
      fd,
      (client) => {
        const { uid, pid } = peerCredentials(client);
        if (uids.includes(uid)) {
          this.#serve(entry, client, () => this.#vacate(entry)).catch((e: unknown) =>
            this.#log('error', `${entry.name}: cannot serve: ${text(e)}`),
          );
        } else {
          closeFd(client);
          this.#log('warn', `${entry.name}: refused process ${pid}: user ${uid} may not use this device`);
        }
      },
      (e) => this.#log('error', `${entry.name}: no client can connect now: ${e.message}`),
    );
  }

  /** Serves a client; a second one is refused, unless the first is just leaving. @param left runs after its connection */
  async #serve(entry: Entry, fd: number, left: () => Promise<void>): Promise<void> {
    while (entry.busy) {
      if (await settles(entry.free, LEAVING_MS)) continue;
      closeFd(fd);
      this.#log('warn', `${entry.name}: refused a second client: the device is in use`);
      return;
    }
    if (entry.removed) {
      closeFd(fd);
      return;
    }
    entry.busy = true;
    let release = (): void => {};
    entry.free = new Promise((resolve) => {
      release = () => {
        entry.busy = false;
        entry.connection = undefined;
        resolve();
      };
    });
    try {
      if (entry.device instanceof PtnetDevice) await entry.device.connected();
      const log = (text: string, level: 'warn' | 'debug'): void => this.#log(level, `${entry.name}: ${text}`);
      entry.connection = new ServerConnection(socketTransport(fd), entry.device, { log });
    } catch (e) {
      closeFd(fd);
      release();
      throw e;
    }
    this.#log('debug', `${entry.name}: a client connected`);
    void entry.connection.closed.then(async (reason) => {
      await left();
      release();
      this.#log('debug', `${entry.name}: the client is gone: ${reason}`);
    });
    // It was removed while the datapath took the client's kicks.
    if (entry.removed) entry.connection.close(REMOVED);
  }

  async #remove(id: number): Promise<void> {
    const entry = this.#entry(id);
    entry.removed = true;
    entry.listener?.close();
    entry.connection?.close(REMOVED);
    await entry.free;
    await this.#vacate(entry);
    this.#entries.delete(id);
    // A rebuild that has begun reads the records of all who were there then: they stay until it is done.
    await this.#rebuilt.catch(() => undefined);
  }

  /** A device's client is gone: what it left is put right. */
  async #vacate({ device, name }: Entry): Promise<void> {
    if (device instanceof PtnetDevice) await this.#putRight(name, () => device.vacated());
  }

  async #putRight(name: string, rebuild: () => Promise<void>): Promise<void> {
    if (this.#ending) return;
    try {
      await rebuild();
    } catch (e) {
      this.#log('warn', `${name}: the rings could not be put right: ${text(e)}`);
    }
  }

  #log(level: 'error' | 'warn' | 'debug', message: string): void {
    this.#post({ event: 'log', level, message });
  }
}

const text = (e: unknown): string => (e instanceof Error ? e.message : String(e));
