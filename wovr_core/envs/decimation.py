"""Fast rendering of MuJoCo scenes on a CPU: the same physics and cameras, fewer triangles, no mirror in the floor.

A step of LIBERO is nearly all rendering, and rendering is nearly all vertices (300,000 triangles). Meshes that are
only looked at are simplified (quadric error: Garland and Heckbert 1997) to some `TRIANGLES` each, in the model's own
arrays, so that nothing that is touched or weighed changes. It is another look of the scene, to be said with every
result.
"""

from functools import cache
from typing import Any

import fast_simplification
import mujoco
import numpy as np

TRIANGLES = 1500  # of a mesh, at most about
FEWEST = 20  # a mesh that would keep fewer stays as it is
FINE = 128  # pixels; smaller pictures are drawn with four samples each, for in them a pixel is much of a thing


def render_fast(sim: Any, image_size: int) -> None:
    """Have a robosuite simulation draw fast, in pictures of `image_size`; again after every hard reset."""
    model, context = sim.model._model, sim._render_context_offscreen
    model.vis.quality.offsamples = 0 if image_size >= FINE else 4
    model.vis.global_.offwidth = model.vis.global_.offheight = image_size
    for mesh in _only_looked_at(model):
        _simplify(model, mesh)
    context.gl_ctx.make_current()
    context.con.free()
    context._set_mujoco_context_and_buffers()
    context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0


def _only_looked_at(model: Any) -> list[int]:
    """Meshes that no colliding geometry uses."""
    visible: set[int] = set()
    touched: set[int] = set()
    for geom in range(model.ngeom):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
            (touched if collides else visible).add(int(model.geom_dataid[geom]))
    return sorted(visible - touched)


def _simplify(model: Any, mesh: int) -> None:
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    face, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    if faces <= TRIANGLES:
        return
    vertices, triangles = model.mesh_vert[first : first + count], model.mesh_face[face : face + faces]
    moved, simplified, corners = _simplified(vertices.tobytes(), triangles.tobytes())
    if len(simplified) < FEWEST:
        return
    vertices[:] = moved
    for rows in (model.mesh_facenormal, model.mesh_facetexcoord):
        rows[face : face + len(simplified)] = rows[face : face + faces][simplified]
    triangles[: len(simplified)] = corners
    model.mesh_facenum[mesh] = len(simplified)


@cache
def _simplified(vertices: bytes, triangles: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each vertex goes, which triangles stay, and their corners: indices into the same vertices.

    MuJoCo stores a vertex once for every triangle around it; they are welded by position for the simplification.
    """
    points = np.frombuffer(vertices, np.float32).reshape(-1, 3)
    faces = np.frombuffer(triangles, np.int32).reshape(-1, 3)
    grain = np.ptp(points, axis=0).max() * 1e-5 + 1e-9
    _, first, welded = np.unique(
        np.round(points / grain).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    welded = welded.ravel()[faces]
    source = np.flatnonzero(_proper(welded))
    mesh = points[first], welded[source].astype(np.int32)
    *_, collapses = fast_simplification.simplify(
        *mesh, target_reduction=max(0.0, 1 - TRIANGLES / len(source)), return_collapses=True
    )
    left, _, goes_to = fast_simplification.replay_simplification(*mesh, collapses)
    slot = np.zeros(len(left), int)
    slot[goes_to] = first  # the place in storage of each vertex that is left
    corners = np.zeros_like(faces)
    corners[source] = slot[goes_to[welded[source]]]
    simplified = source[_proper(corners[source])]
    moved = points.copy()
    moved[slot] = left
    return moved, simplified, corners[simplified]


def _proper(faces: np.ndarray) -> np.ndarray:
    """Triangles with three different corners."""
    a, b, c = faces.T
    return (a != b) & (b != c) & (a != c)
