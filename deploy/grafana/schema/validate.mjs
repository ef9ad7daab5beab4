// Hold dashboards against Grafana's types, turned into JSON schemas: `node validate.mjs DASHBOARD.json ...`.
// No property may be unknown, none that is required may be missing. Says what is wrong where, and exits with 1.
import { readFileSync } from 'node:fs';

import Ajv from 'ajv';
import { createGenerator } from 'ts-json-schema-generator';

const generator = createGenerator({
  path: 'dashboards.ts',
  tsconfig: 'tsconfig.json',
  expose: 'none',
  skipTypeCheck: true,
});
const ajv = new Ajv({ strict: false, allErrors: true });
const compiled = (type) => ajv.compile(generator.createSchema(type));
const frame = compiled('Frame');
const panels = {
  row: compiled('Row'),
  heatmap: compiled('Heatmap'),
  stat: compiled('Stat'),
  timeseries: compiled('Timeseries'),
};

let wrong = 0;
let checked = 0;

function hold(validate, value, place) {
  checked += 1;
  if (validate(value)) return;
  for (const error of validate.errors) {
    wrong += 1;
    console.error(`${place}${error.instancePath}: ${error.message} ${JSON.stringify(error.params)}`);
  }
}

for (const path of process.argv.slice(2)) {
  const dashboard = JSON.parse(readFileSync(path, 'utf8'));
  hold(frame, dashboard, path);
  for (const panel of dashboard.panels) {
    const place = `${path}: ${panel.title}`;
    const validate = panels[panel.type];
    if (validate) {
      hold(validate, panel, place);
    } else {
      wrong += 1;
      console.error(`${place}: panels are of type ${Object.keys(panels).join(', ')}, not ${panel.type}`);
    }
  }
}
console.log(`${checked} checked, ${wrong} wrong`);
process.exitCode = wrong ? 1 : 0;
