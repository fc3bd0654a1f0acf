/** Entry of the devices worker thread: speaks vfio-user on its event loop, and watches the datapath threads' writes. */
import type { MessagePort } from 'node:worker_threads';
import { parentPort, workerData } from 'node:worker_threads';
import type { CommandMessage, ReplyMessage } from '../kloop/index.ts';
import { datapathMailbox, failure } from '../kloop/index.ts';
import { Arena } from '../memory/index.ts';
import type { DevicesCommand, DevicesEvent } from './devices.ts';
import { Devices } from './devices.ts';
import { Heartbeats } from './heartbeats.ts';

export interface DevicesThreadData {
  readonly mail: MessagePort;
  readonly threads: readonly {
    readonly memory: WebAssembly.Memory;
    readonly ctl: Int32Array;
    readonly mail: MessagePort;
    readonly watcher: MessagePort;
  }[];
}

function main({ mail, threads }: DevicesThreadData): void {
  const post = (event: DevicesEvent): void => parentPort?.postMessage(event);
  const devices = new Devices(
    threads.map((t) => ({ arena: new Arena(t.memory), mailbox: datapathMailbox(t.mail, t.ctl) })),
    post,
  );
  for (const { ctl, watcher } of threads) {
    const heartbeats = new Heartbeats(ctl, (fd) => {
      post({ event: 'log', level: 'warn', message: `a datapath thread hung on writing descriptor ${fd}; freed it` });
      devices.disconnectOwner(fd);
    });
    watcher.on('message', () => heartbeats.watch());
  }
  mail.on('message', ({ id, command }: CommandMessage<DevicesCommand>) => {
    devices.execute(command).then(
      () => mail.postMessage({ id, result: { value: 0 } } satisfies ReplyMessage),
      (e: unknown) => mail.postMessage({ id, result: failure(e) } satisfies ReplyMessage),
    );
  });
}

main(workerData as DevicesThreadData);
