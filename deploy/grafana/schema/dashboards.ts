// The types of what the dashboards are made of, from Grafana's own package: each kind of panel with its options.
import type { Dashboard, Panel, RowPanel } from '@grafana/schema';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

type Defaults<Custom> = Omit<NonNullable<Panel['fieldConfig']>['defaults'], 'custom'> & { custom?: Custom };

type PanelOf<Type, Options, Custom> = Omit<Panel, 'type' | 'options' | 'fieldConfig'> & {
  type: Type;
  options: Options;
  fieldConfig?: { defaults: Defaults<Custom>; overrides: [] };
};

export type Frame = Omit<Dashboard, 'panels'> & { panels: unknown[] };
export type Row = RowPanel;
export type Heatmap = PanelOf<'heatmap', heatmap.Options, heatmap.FieldConfig>;
export type Stat = PanelOf<'stat', stat.Options, never>;
export type Timeseries = PanelOf<'timeseries', timeseries.Options, timeseries.FieldConfig>;
