-- lanes.lua: by which weights lanes that have work share the starts. Included by claiming.lua and position.lua.
-- While several have work, `meta` counts the starts in `contended`. A burst in a higher lane goes first almost alone;
-- one that does not end leaves a tenth of the starts to the lowest lane.
local BURST = 64
local IN_BURST, LASTING = {high = 64, normal = 16, low = 1}, {high = 14, normal = 4, low = 2}
local function lane_weights(contended) return contended < BURST and IN_BURST or LASTING end
