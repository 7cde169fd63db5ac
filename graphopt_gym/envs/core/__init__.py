"""What all environments share: episodes, the scalar and the vector form, rosters, actions, observations, rendering."""
