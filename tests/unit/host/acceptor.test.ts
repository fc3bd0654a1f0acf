/** Accepting on an event loop: whoever connects without end leaves others their turns. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { acceptor } from '../../../src/host/acceptor.ts';
import { closeFd, connectUnix, listenUnix } from '../../../src/os/index.ts';

test('R21: a flood of connections is accepted some at a time, and what else the loop has to do gets its turns', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-acceptor-'));
  const path = join(dir, 'socket');
  const listener = listenUnix(path, 0o600, 128);
  const clients = Array.from({ length: 20 }, () => connectUnix(path));
  const ofTurns: number[] = [];
  let ofTurn = 0;
  const accepting = acceptor(
    listener,
    (fd) => {
      ofTurn++;
      closeFd(fd);
      // As a flooder has it: for each that is accepted, another one waits.
      if (clients.length < 200) clients.push(connectUnix(path));
    },
    (e) => assert.fail(e),
  );
  for (let accepted = 0; accepted < 200; accepted += ofTurn) {
    ofTurn = 0;
    await turn();
    ofTurns.push(ofTurn);
  }
  accepting.close();
  clients.forEach(closeFd);
  rmSync(dir, { recursive: true });
  assert.ok(Math.max(...ofTurns) <= 16, `accepted in a turn: ${ofTurns.join(', ')}`);
});
