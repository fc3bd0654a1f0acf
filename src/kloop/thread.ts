/**
 * Entry of a datapath worker thread. It never returns to its event loop: mail is taken with receiveMessageOnPort between
 * turns, so nothing here may rely on promises, timers or events.
 */
import type { MessagePort } from 'node:worker_threads';
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { Arena } from '../memory/index.ts';
import { pinThread } from '../os/index.ts';
import type { CommandMessage, ReplyMessage } from './client.ts';
import type { Command, KloopEvent } from './commands.ts';
import { CTL } from './commands.ts';
import { loadDatapath } from './datapath.ts';
import { Kloop } from './kloop.ts';

export interface KloopThreadData {
  readonly memory: WebAssembly.Memory;
  readonly ctl: Int32Array;
  /** One port per thread that sends commands. */
  readonly mail: readonly MessagePort[];
  /** To the devices thread: posted to when this thread is awake and unwatched (R15). */
  readonly watcher: MessagePort;
  /** The CPU that the thread is pinned to; undefined: it goes where the kernel puts it. */
  readonly cpu: number | undefined;
}

function main(data: KloopThreadData): void {
  const { ctl, mail, cpu } = data;
  if (cpu !== undefined) pinThread(cpu);
  const arena = new Arena(data.memory);
  const post = (event: KloopEvent): void => parentPort?.postMessage(event);
  const kloop = new Kloop(arena, loadDatapath(data.memory), ctl, {
    takeMail: () => {
      // Cleared first: mail that comes while it is taken sets it again.
      Atomics.store(ctl, CTL.MAIL, 0);
      for (const port of mail) {
        for (;;) {
          const got = receiveMessageOnPort(port) as { message: CommandMessage<Command> } | undefined;
          if (got === undefined) break;
          const { id, command } = got.message;
          port.postMessage({ id, result: kloop.execute(command) } satisfies ReplyMessage);
        }
      }
    },
    onNic: (error) => post({ event: 'nic', error }),
    onTrap: (domain, error) => post({ event: 'trap', domain, error }),
    onUnwatched: () => {
      if (Atomics.exchange(ctl, CTL.WATCHED, 1) === 0) data.watcher.postMessage('awake');
    },
  });
  kloop.run();
  kloop.close();
}

main(workerData as KloopThreadData);
