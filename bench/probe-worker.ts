/** The other end of the cross-core probe (quiet.ts): answers each change of the ball while a probe runs. */
import { workerData } from 'node:worker_threads';
import { WORD } from './quiet.ts';

const shared = workerData as Int32Array;
for (;;) {
  Atomics.wait(shared, WORD.STATE, 0);
  const state = Atomics.load(shared, WORD.STATE);
  if (state < 0) break;
  Atomics.store(shared, WORD.READY, 1);
  let seen = Atomics.load(shared, WORD.PONG);
  while (Atomics.load(shared, WORD.STATE) > 0) {
    const ball = Atomics.load(shared, WORD.PING);
    if (ball !== seen) {
      seen = ball;
      Atomics.store(shared, WORD.PONG, ball);
    }
  }
  Atomics.store(shared, WORD.READY, 0);
}
