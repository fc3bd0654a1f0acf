/** A guest at rest: it waits for packets that never come. Arguments: run directory, port. */
import { openPort, POLLIN } from '../../../src/api/index.ts';

const [runDir, name] = process.argv.slice(2) as [string, string];
const port = await openPort(name, { runDir });
process.stdout.write('resting\n');
await port.wait(POLLIN);
