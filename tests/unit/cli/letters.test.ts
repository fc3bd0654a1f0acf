// The letters of netmap's applications (their getopt strings; docs/pkt-gen.md and its neighbours say what differs): each is
// taken by the command of that name, with a value or without, as there.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Command } from 'commander';
import { bridgeCommand } from '../../../src/cli/commands/bridge.ts';
import { lbCommand } from '../../../src/cli/commands/lb.ts';
import { nmreplayCommand } from '../../../src/cli/commands/nmreplay.ts';
import { pktGenCommand } from '../../../src/cli/commands/pkt-gen.ts';

const GETOPT: readonly (readonly [Command, string])[] = [
  [pktGenCommand(), '46a:f:F:Nn:i:Il:d:s:D:S:b:c:o:p:T:w:WvR:XC:H:rP:zZAhBM:'],
  [bridgeCommand(), 'hb:ci:vw:L'],
  [lbCommand(), 'hi:p:b:B:s:o:w:W'],
  [nmreplayCommand(), 'B:C:D:L:b:f:i:vw:'],
];

for (const [command, getopt] of GETOPT) {
  test(`${command.name()} takes all letters of netmap's`, () => {
    const letters = [...getopt.matchAll(/(\w)(:?)/g)].filter(([, letter]) => letter !== 'h');
    const takes = new Map(command.options.flatMap((o) => (o.short ? [[o.short, o.required] as const] : [])));
    assert.deepEqual(
      letters.map(([, letter]) => [letter, takes.get(`-${letter}`)]),
      letters.map(([, letter, value]) => [letter, value === ':']),
    );
    assert.equal(command.helpInformation().includes('-h, --help'), true);
  });
}
