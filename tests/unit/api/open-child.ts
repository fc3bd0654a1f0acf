/** Opens a port and stays, for open.test.ts to kill. */
import { openPort } from '../../../src/api/index.ts';

await openPort('vale2:child', { runDir: process.argv[2]! });
process.send!('open');
