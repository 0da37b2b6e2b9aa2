"""Schedules, and the coefficients for networks of one's own."""

import numpy as np
import pytest

import ddpm_ip


def test_schedules_are_the_published_ones():
    linear = ddpm_ip.Schedule()
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(linear.betas, betas, rtol=1e-11)
    np.testing.assert_allclose(linear.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-11)
    np.testing.assert_allclose(linear.signal**2 + linear.noise**2, 1, rtol=1e-14)
    few = ddpm_ip.Schedule("cosine", 1000, "ddim50")
    assert len(few) == 50 and few.times[1] == 20 and few.posterior_variance[0] == 0
    with pytest.raises(ddpm_ip.ConfigError, match="sigmoid"):
        ddpm_ip.Schedule("sigmoid")
    with pytest.raises(ddpm_ip.ConfigError):
        ddpm_ip.Schedule(steps=0)


GAMMA = 0.15
S, C = np.sqrt(1 + GAMMA**2), GAMMA**2 / (1 + GAMMA**2)


@pytest.mark.parametrize(
    "predicts, target, constant",
    [
        ("epsilon", lambda a, b: (0, 1), lambda a, b: C),
        ("x-start", lambda a, b: (1, 0), lambda a, b: 0),
        ("v", lambda a, b: (-b, a), lambda a, b: a**2 * C),
        ("velocity", lambda a, b: (-1, 1), lambda a, b: C),
        ("score", lambda a, b: (0, -1 / b), lambda a, b: C / b**2),
    ],
)
def test_the_coefficients_are_those_of_the_table(predicts, target, constant):
    a, b = np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.5, 0.9])
    x, n = (np.broadcast_to(value, 3) for value in target(a, b))
    sampled = ddpm_ip.Perturbation(GAMMA).mix_at(a, b, predicts)
    equivalent = ddpm_ip.Perturbation(GAMMA, "equivalent").mix_at(a, b, predicts)
    for mix, noise, xi, of_noise, raised in [
        (sampled, b, b * GAMMA, n, 0),
        (equivalent, b * S, 0, n / S, constant(a, b)),
    ]:
        for found, expected in [
            (mix.x_start, a), (mix.noise, noise), (mix.xi, xi), (mix.target_x_start, x), (mix.target_noise, of_noise),
            (mix.constant, raised),
        ]:  # fmt: skip
            np.testing.assert_allclose(found, np.broadcast_to(expected, 3), rtol=1e-14)


def test_timesteps_take_their_levels_and_strengths_from_the_schedule():
    schedule = ddpm_ip.Schedule("cosine", 100)
    t = np.array([[0, 50], [99, 10]])
    mix = ddpm_ip.Perturbation(0.2).mix(t, schedule=schedule)
    np.testing.assert_array_equal(mix.x_start, schedule.signal[t])
    np.testing.assert_array_equal(mix.xi, 0.2 * schedule.noise[t])
    one = ddpm_ip.Perturbation(0.2).mix(50, schedule=schedule)
    assert one.noise.shape == () and one.noise == schedule.noise[50]
    ramp = ddpm_ip.Perturbation(0.2, strength="linear", gamma_start=0.1).mix([0, 99], schedule=schedule)
    np.testing.assert_allclose(ramp.xi / ramp.noise, [0.1, 0.2])
    half = ddpm_ip.Perturbation(0.2, strength="decay", decay_steps=10).mix(5, schedule=schedule, train_step=5)
    np.testing.assert_allclose(half.xi, 0.1 * schedule.noise[5])
    drawn = ddpm_ip.Perturbation(0.2, strength="uniform").mix([5, 5], schedule=schedule, u=[0.25, 0.5])
    np.testing.assert_allclose(drawn.xi / drawn.noise, [0.05, 0.1])


@pytest.mark.parametrize(
    "mistake, said",
    [
        (lambda: ddpm_ip.Perturbation(-1), "gamma"),
        (lambda: ddpm_ip.Perturbation(0.1, "sampeld"), "sampeld"),
        (lambda: ddpm_ip.Perturbation(0.1, strength="uniform").mix(3), "give u"),
        (lambda: ddpm_ip.Perturbation().mix(1000), "0 to 999"),
        (lambda: ddpm_ip.Perturbation().mix(0.5), "not a timestep"),
        (lambda: ddpm_ip.Perturbation().mix([3, float("nan")]), "NaN"),
        (lambda: ddpm_ip.Perturbation().mix_at([1.0, 0.5], [0.5]), "the same"),
        (lambda: ddpm_ip.Perturbation().mix(3, predicts="speed"), "velocity"),
    ],
)
def test_mistakes_are_named(mistake, said):
    with pytest.raises(ddpm_ip.ConfigError, match=said):
        mistake()
