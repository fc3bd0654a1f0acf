/** The daemon's worker threads: n datapath threads, each with its arena, and one devices thread. */
import type { MessagePort } from 'node:worker_threads';
import { MessageChannel, Worker } from 'node:worker_threads';
import type { Command, KloopEvent } from '../kloop/index.ts';
import { CTL, datapathMailbox, Mailbox, ringDoorbell } from '../kloop/index.ts';
import type { KloopThreadData } from '../kloop/thread.ts';
import { Arena, ArenaSpace } from '../memory/index.ts';
import { usableCpus } from '../os/index.ts';
import type { DaemonConfig } from './config.ts';
import type { DevicesCommand, DevicesEvent } from './devices.ts';
import type { DevicesThreadData } from './devices-thread.ts';

/** A datapath thread as the control thread sees it. */
export interface Datapath {
  readonly index: number;
  readonly arena: Arena;
  readonly space: ArenaSpace;
  readonly ctl: Int32Array;
  readonly mailbox: Mailbox<Command>;
}

export interface ThreadHooks {
  onKloopEvent(thread: number, event: KloopEvent): void;
  onDevicesEvent(event: DevicesEvent): void;
  /** An exception nobody caught in a worker, or a worker that ended by itself: the daemon cannot go on. */
  onFailure(thread: string, error: Error): void;
}

export class Threads {
  readonly datapaths: readonly Datapath[];
  readonly devices: Mailbox<DevicesCommand>;
  readonly #workers: Worker[] = [];
  #ending = false;

  private constructor(datapaths: readonly Datapath[], devices: Mailbox<DevicesCommand>) {
    this.datapaths = datapaths;
    this.devices = devices;
  }

  /**
   * Starts all threads; resolves when they run. Mail that comes before they look waits for them.
   * @throws Error: a CPU is not to be had, or one could not be started; none is left then
   */
  static async start(
    { threads: count, arenaBytes, cpus }: Pick<DaemonConfig, 'threads' | 'arenaBytes' | 'cpus'>,
    hooks: ThreadHooks,
  ): Promise<Threads> {
    if (cpus !== undefined) checkCpus(cpus);
    const datapaths: Datapath[] = [];
    const forDevices: DevicesThreadData['threads'][number][] = [];
    const toStart: { data: KloopThreadData; transfer: MessagePort[] }[] = [];
    for (let index = 0; index < count; index++) {
      const arena = Arena.create(arenaBytes);
      const ctl = new Int32Array(new SharedArrayBuffer(4 * CTL.LENGTH));
      const control = new MessageChannel();
      const devices = new MessageChannel();
      const watcher = new MessageChannel();
      const mail = [control.port2, devices.port2];
      const data = { memory: arena.memory, ctl, mail, watcher: watcher.port2, cpu: cpus?.[index] };
      toStart.push({ data, transfer: [control.port2, devices.port2, watcher.port2] });
      forDevices.push({ memory: arena.memory, ctl, mail: devices.port1, watcher: watcher.port1 });
      datapaths.push({
        index,
        arena,
        space: new ArenaSpace(arena),
        ctl,
        mailbox: datapathMailbox(control.port1, ctl),
      });
    }
    const devicesMail = new MessageChannel();
    const threads = new Threads(datapaths, new Mailbox(devicesMail.port1));
    try {
      await Promise.all(
        toStart.map(({ data, transfer }, index) =>
          threads.#spawn(`datapath ${index}`, '../kloop/thread.js', data, transfer, hooks, (event: KloopEvent) =>
            hooks.onKloopEvent(index, event),
          ),
        ),
      );
      const data: DevicesThreadData = { mail: devicesMail.port2, threads: forDevices };
      const transfer = [devicesMail.port2, ...forDevices.flatMap((t) => [t.mail, t.watcher])];
      await threads.#spawn('devices', './devices-thread.js', data, transfer, hooks, (event: DevicesEvent) =>
        hooks.onDevicesEvent(event),
      );
      return threads;
    } catch (e) {
      // They sleep in native calls, where the end of a thread does not reach them: rung for, they look, and end.
      const ended = threads.#workers.map((w) => w.terminate());
      threads.wakeAll();
      await Promise.all(ended);
      throw e;
    }
  }

  /** Resolves when the worker runs. */
  #spawn<E>(
    name: string,
    file: string,
    workerData: object,
    transferList: MessagePort[],
    hooks: ThreadHooks,
    onEvent: (event: E) => void,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const worker = new Worker(new URL(file, import.meta.url), { workerData, transferList, name: `ptnet ${name}` });
      this.#workers.push(worker);
      worker.once('online', resolve);
      worker.on('message', onEvent);
      worker.on('error', (error: Error) => {
        reject(error);
        hooks.onFailure(name, error);
      });
      worker.on('exit', (code) => {
        if (!this.#ending) hooks.onFailure(name, new Error(`the thread ended by itself (${code})`));
      });
    });
  }

  /** Ends the datapath threads' loops, and all threads. The devices have to be removed before. */
  async end(): Promise<void> {
    this.#ending = true;
    // One that has failed has ended already.
    await Promise.allSettled(this.datapaths.map((d) => d.mailbox.call({ op: 'end' })));
    await Promise.all(this.#workers.map((w) => w.terminate()));
  }

  /** Rings every doorbell (R20). */
  wakeAll(): void {
    this.#ending = true;
    for (const { ctl } of this.datapaths) ringDoorbell(ctl);
  }
}

/** @throws Error: a CPU is not one that this process may use */
function checkCpus(cpus: readonly number[]): void {
  const usable = usableCpus();
  const missing = cpus.find((cpu) => !usable.includes(cpu));
  if (missing === undefined) return;
  throw new Error(`cpus: CPU ${missing} is not one that this process may use (${usable.join(', ')})`);
}
