/** Names written from their parts are parsed into these parts; anything else is refused with a place, never otherwise. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { NR_REG_ALL_NIC, NR_REG_ONE_NIC } from '../../src/abi/index.ts';
import { parsePortName, PortNameError } from '../../src/ports/index.ts';

const runs = process.env['PTNET_LONG'] === undefined ? 500 : 100_000;
const id = fc.stringMatching(/^[A-Za-z0-9_]{1,8}$/);
const port = fc.oneof(
  fc.tuple(id, id).map(([b, p]) => `vale${b}:${p}`),
  id.map((p) => `netmap:${p}`),
  fc.tuple(id, fc.constantFrom('{', '}'), id).map(([b, brace, i]) => `netmap:${b}${brace}${i}`),
);

test('a name made of its parts is taken apart again', () => {
  fc.assert(
    fc.property(port, fc.option(fc.nat(4094)), fc.option(fc.integer({ min: 1, max: 65535 })), (name, ring, mem) => {
      const text = `${name}${ring === null ? '' : `-${ring}`}${mem === null ? '' : `@${mem}`}`;
      const parsed = parsePortName(text);
      assert.equal(parsed.name, name);
      assert.equal(parsed.mode, ring === null ? NR_REG_ALL_NIC : NR_REG_ONE_NIC);
      assert.equal(parsed.ringId, ring ?? 0);
      assert.equal(parsed.memId, mem === null ? undefined : String(mem));
    }),
    { numRuns: runs },
  );
});

test('any text is a name or refused with a place in it', () => {
  const text = fc.oneof(
    fc.string(),
    fc.array(fc.constantFrom(...'vale0:{}-*^/@x=,1netmpco')).map((c) => c.join('')),
  );
  fc.assert(
    fc.property(
      fc.oneof(
        text,
        text.map((t) => `vale0:a${t}`),
      ),
      (t) => {
        try {
          assert.ok(t.startsWith(parsePortName(t).name));
        } catch (e) {
          assert.ok(e instanceof PortNameError && e.at >= 0 && e.at <= t.length, String(e));
        }
      },
    ),
    { numRuns: runs },
  );
});
