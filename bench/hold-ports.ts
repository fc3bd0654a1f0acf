/** `hold-ports RUN_DIR COUNT`: opens ports of the switch vale0, says so, and holds them until it is ended. */
import { openPort } from '../src/api/index.ts';

const [runDir = '', count = '0'] = process.argv.slice(2);
const shape = { txSlots: 256, rxSlots: 256 };
const ports = [];
for (let i = 0; i < Number(count); i++) ports.push(await openPort(`vale0:idle${i}`, { runDir, ...shape }));
process.stdout.write(`${ports.length}\n`);
setInterval(() => undefined, 60_000);
